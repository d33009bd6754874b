package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/journal"
)

// reserve admits a pod's hostPorts and holds them until release is called or
// they are mapped. The error is one of gRPC.
func (m *Manager) reserve(ctx context.Context, pod journal.Pod, config *runtimeapi.PodSandboxConfig) (release func(), err error) {
	if m.HostPorts == nil || len(config.GetPortMappings()) == 0 {
		return func() {}, nil
	}
	var requests []hostport.Request
	for _, p := range config.GetPortMappings() {
		requests = append(requests, hostport.Request{
			Protocol: p.GetProtocol().String(), HostIP: p.GetHostIp(),
			HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
		})
	}
	mappings, err := hostport.ParseMappings(requests)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "pod %s: %v", pod, err)
	}
	reservation, err := m.HostPorts.Reserve(ctx, hostport.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Mappings: mappings,
	})
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s: %v", pod, err)
	}
	return reservation.Release, nil
}

// hostPorts are the mappings that the runtime passes with ADD.
func (m *Manager) hostPorts(call *cnihook.Call) ([]hostport.Mapping, error) {
	if m.HostPorts == nil || len(call.RuntimeConfig) == 0 {
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

// mapPorts maps the hostPorts of a sandbox that has its addresses. The ports of
// one that came to the runtime directly are admitted only now.
func (m *Manager) mapPorts(ctx context.Context, r *journal.Record) error {
	if len(r.HostPorts) == 0 {
		return nil
	}
	if m.HostPorts == nil {
		return errors.New("hostPorts are not mapped in this mode")
	}
	pod := portPod(r)
	if m.calls.find(r.Pod) == nil {
		reservation, err := m.HostPorts.Reserve(ctx, pod)
		if err != nil {
			return err
		}
		defer reservation.Release()
	}
	failpoint.Hit("hostPorts", "map", failpoint.Before)
	defer failpoint.Hit("hostPorts", "map", failpoint.After)
	return m.HostPorts.Map(ctx, pod)
}

// unmapPorts takes the hostPorts of a sandbox away.
func (m *Manager) unmapPorts(ctx context.Context, r *journal.Record) error {
	if len(r.HostPorts) == 0 || m.HostPorts == nil {
		return nil
	}
	failpoint.Hit("hostPorts", "unmap", failpoint.Before)
	defer failpoint.Hit("hostPorts", "unmap", failpoint.After)
	return m.HostPorts.Unmap(ctx, r.Attachment.ContainerID)
}

// MappedPods are the pods in the journal whose hostPorts must be mapped: what
// hostport's Sync takes at start.
func (m *Manager) MappedPods() ([]hostport.Pod, error) {
	records, err := m.Journal.Sandbox("")
	if err != nil {
		return nil, err
	}
	var pods []hostport.Pod
	for _, r := range records {
		if r.State == journal.Attached && r.BootID == m.BootID && len(r.HostPorts) > 0 {
			pods = append(pods, portPod(r))
		}
	}
	return pods, nil
}

func portPod(r *journal.Record) hostport.Pod {
	pod := hostport.Pod{
		SandboxID: r.Attachment.ContainerID, Namespace: r.Pod.Namespace, Name: r.Pod.Name, UID: r.Pod.UID,
		Mappings: r.HostPorts,
	}
	for _, address := range addresses(r.Attachment.Result) {
		if prefix, err := netip.ParsePrefix(address); err == nil {
			pod.IPs = append(pod.IPs, prefix.Addr())
		}
	}
	return pod
}
