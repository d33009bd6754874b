package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/journal"
)

// ErrRefused marks errors of [Engine.Begin]: the pod cannot have a network now,
// and nothing has been done for it.
var ErrRefused = errors.New("pod refused")

// Begin admits a pod that the runtime is about to be asked for: the network must
// be ready and the hostPorts free. The ports are held until the flight's End.
// Begin refuses at once, before anything exists; the error wraps ErrRefused.
func (e *Engine) Begin(ctx context.Context, pod journal.Pod, ports []hostport.Mapping) (*Flight, error) {
	if err := e.Ready(); err != nil {
		return nil, fmt.Errorf("%w: pod %s: network not ready: %w", ErrRefused, pod, err)
	}
	flight, err := e.takeOff(ctx, pod, ports)
	if err != nil {
		return nil, fmt.Errorf("%w: pod %s: %w", ErrRefused, pod, err)
	}
	flight.deadline, _ = ctx.Deadline()
	flight.followBy(ctx)
	flight.begin(ctx, StepCreate)
	return flight, nil
}

// takeOff reserves hostPorts and begins a flight.
func (e *Engine) takeOff(ctx context.Context, pod journal.Pod, ports []hostport.Mapping) (*Flight, error) {
	flight := &Flight{engine: e, pod: pod, asked: true, release: func() {}}
	if e.mapsPorts && len(ports) > 0 {
		reservation, err := e.hostPorts.Reserve(ctx, hostport.Pod{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Mappings: ports,
		})
		if err != nil {
			return nil, err
		}
		flight.release = reservation.Release
	}
	e.flights.add(flight)
	return flight, nil
}

// hostPortsOf returns the mappings that the runtime passes with ADD.
func (e *Engine) hostPortsOf(call *Call) ([]hostport.Mapping, error) {
	if !e.mapsPorts || len(call.RuntimeConfig) == 0 {
		return nil, nil
	}
	var config struct {
		PortMappings []hostport.Request `json:"portMappings"`
	}
	if err := json.Unmarshal(call.RuntimeConfig, &config); err != nil {
		return nil, fmt.Errorf("portMappings: %w", err)
	}
	return hostport.ParseMappings(config.PortMappings)
}

// mapPorts maps the hostPorts of a sandbox that has its addresses, and masquerades
// those that a built-in plugin leaves to crinetd. The ports of a sandbox that nobody
// asked crinetd for are admitted only now.
func (e *Engine) mapPorts(ctx context.Context, r *journal.Record, flight *Flight) error {
	pod, err := e.PortPod(r)
	if err != nil || len(pod.Mappings)+len(pod.Masquerade) == 0 {
		return err
	}
	if e.hostPorts == nil {
		return fmt.Errorf("network %q masquerades, and this crinetd keeps no table for that", r.Attachment.Network)
	}
	if !flight.asked && len(pod.Mappings) > 0 {
		reservation, err := e.hostPorts.Reserve(ctx, pod)
		if err != nil {
			return err
		}
		defer reservation.Release()
	}
	return e.hostPorts.Map(ctx, pod)
}

// unmapPorts takes away what mapPorts did for a sandbox.
func (e *Engine) unmapPorts(ctx context.Context, r *journal.Record) error {
	if e.hostPorts == nil {
		return nil
	}
	return e.hostPorts.Unmap(ctx, r.Attachment.ContainerID)
}

// MappedPods returns the pods in the journal that have hostPorts which crinetd maps,
// or holds for the plugin that mapped them, or addresses that it masquerades.
func (e *Engine) MappedPods() ([]hostport.Pod, error) {
	records, err := e.journal.Sandbox("")
	if err != nil {
		return nil, err
	}
	var pods []hostport.Pod
	for _, r := range records {
		if !e.Stands(r) || r.Trial && !e.flights.has(r.Key()) {
			continue // the queue undoes it
		}
		pod, err := e.PortPod(r)
		if err != nil {
			e.log.Error("a pod's connections may leave the node with the pod's own address", "pod", r.Pod, "sandbox", r.Attachment.ContainerID, "err", err)
		}
		if len(pod.Mappings)+len(pod.Masquerade) > 0 {
			pods = append(pods, pod)
		}
	}
	return pods, nil
}

// PortPod is what an attachment needs of the table. With an error it lacks the
// addresses to masquerade.
func (e *Engine) PortPod(r *journal.Record) (pod hostport.Pod, err error) {
	pod = hostport.Pod{
		SandboxID: r.Attachment.ContainerID, Namespace: r.Pod.Namespace, Name: r.Pod.Name, UID: r.Pod.UID,
		NetNS: r.Attachment.NetNS, Foreign: r.Adopted,
	}
	if e.mapsPorts {
		pod.Mappings = r.HostPorts
	}
	for _, prefix := range addresses(r.Attachment.Result) {
		pod.IPs = append(pod.IPs, prefix.Addr())
	}
	pod.Masquerade, err = r.Attachment.Masquerade()
	return pod, err
}
