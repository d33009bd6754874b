package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Add is the runtime's ADD: steps 2 and 3 of the lifecycle. It returns the CNI
// result. After an error nothing is left on the node, or the journal knows of it
// and the undo queue works on it.
func (m *Manager) Add(ctx context.Context, call *cnihook.Call) ([]byte, error) {
	key := journal.Key{ContainerID: call.ContainerID, IfName: call.IfName}
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		return nil, tryAgainLater(err)
	}
	defer unlock()

	life := m.calls.find(podOf(call))
	if life == nil {
		life = new(lifecycle) // the sandbox was asked for at the runtime directly
	}
	life.begin(StepNetNS, m.now())
	record, err := m.prepare(ctx, key, call)
	if err != nil {
		return nil, err
	}
	life.attach(key)

	life.begin(StepPlugin, m.now())
	end, err := m.gates.add(ctx, record.Attachment.Network)
	if err != nil {
		return nil, m.abandon(ctx, record, err)
	}
	defer end()
	if err := m.setUp(ctx, record); err != nil {
		return nil, m.abandon(ctx, record, err)
	}
	record.State = journal.Attached
	record.Steps = life.end(m.now())
	if err := errors.Join(m.put(record), callerGone(ctx)); err != nil {
		return nil, m.abandon(ctx, record, err)
	}
	m.Log.Info("pod networked", "pod", record.Pod, "sandbox", key.ContainerID,
		"network", record.Attachment.Network, "addresses", addresses(record.Attachment.Result),
		"took", record.Steps[len(record.Steps)-1].Duration)
	life.begin(StepStart, m.now())
	return record.Attachment.Result, nil
}

// prepare looks at the namespace, plans the attachment and journals it. An
// attachment that stands from an earlier ADD is undone first: the runtime that
// calls ADD again has nothing of the first.
func (m *Manager) prepare(ctx context.Context, key journal.Key, call *cnihook.Call) (*journal.Record, error) {
	pod := podOf(call)
	if !isNetNS(call.NetNS) {
		return nil, types.NewError(types.ErrInvalidNetNS,
			call.NetNS+" is no network namespace", "the runtime must create it before ADD")
	}
	earlier, err := m.Journal.Get(key)
	if err != nil {
		return nil, err
	}
	if earlier != nil {
		m.Log.Warn("ADD for a sandbox that has a network: it is undone first", "pod", pod, "sandbox", key.ContainerID)
		if err := m.detach(ctx, earlier); err != nil {
			return nil, tryAgainLater(err)
		}
	}
	capabilities, err := m.capabilityArgs(call)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "runtimeConfig", err.Error())
	}
	ports, err := m.hostPorts(call)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "hostPorts", err.Error())
	}
	attachment, err := m.Plugin.Plan(cni.Attachment{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName,
		Args: call.Args, CapabilityArgs: capabilities,
	})
	if err != nil {
		return nil, tryAgainLater(fmt.Errorf("network not ready: %w", err))
	}
	record := &journal.Record{
		State: journal.Attaching, Plugin: m.Plugin.Name(), Pod: pod, Attachment: *attachment,
		HostPorts: ports, BootID: m.BootID, Created: m.now().UTC(),
	}
	if record.Attachment.Note, err = note(record); err != nil {
		return nil, err
	}
	if err := m.put(record); err != nil {
		return nil, tryAgainLater(fmt.Errorf("cannot journal the pod's network, so it gets none: %w", err))
	}
	return record, nil
}

// setUp calls the plugin, and makes the pod reachable by its hostPorts.
func (m *Manager) setUp(ctx context.Context, r *journal.Record) error {
	start := m.now()
	result, err := m.Plugin.SetUpPod(ctx, &r.Attachment)
	m.Metrics.plugin("ADD", err, m.now().Sub(start))
	if err != nil {
		return err
	}
	r.Attachment.Result = result
	if err := m.hairpin(ctx, r); err != nil {
		m.Log.Warn("the pod may not reach itself by its hostPorts and Services: no hairpin mode", "pod", r.Pod, "err", err)
	}
	if err := m.mapPorts(ctx, r); err != nil {
		return err
	}
	return callerGone(ctx)
}

// hairpin lets the pod reach itself.
func (m *Manager) hairpin(ctx context.Context, r *journal.Record) error {
	failpoint.Hit("hairpin", "set", failpoint.Before)
	defer failpoint.Hit("hairpin", "set", failpoint.After)
	return m.Hairpin(ctx, r.Attachment.NetNS, r.Attachment.IfName)
}

// callerGone says that the runtime does not wait any more: nobody would take the
// result, and nobody call DEL.
func callerGone(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("the runtime has given up on ADD: %w", context.Cause(ctx))
}

// abandon undoes an attachment whose ADD failed or whose caller is gone, and
// returns the failure with what the undoing met.
func (m *Manager) abandon(ctx context.Context, r *journal.Record, failure error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := m.detach(ctx, r); err != nil {
		return fmt.Errorf("%w; besides, %w", failure, err)
	}
	return failure
}

// tryAgainLater makes an error one that the runtime may expect to pass (CNI
// spec, section Error, code 11).
func tryAgainLater(err error) error {
	return types.NewError(types.ErrTryAgainLater, err.Error(), "")
}

// podOf names the pod that a call is for.
func podOf(call *cnihook.Call) journal.Pod {
	return journal.Pod{Namespace: call.Pod.Namespace, Name: call.Pod.Name, UID: call.Pod.UID}
}

// isNetNS says whether a path is a namespace file, and so not a leftover of one.
func isNetNS(path string) bool {
	var fs unix.Statfs_t
	return path != "" && unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC
}

// addresses are those that a CNI result gives the sandbox, with their prefix
// lengths. Addresses of interfaces on the node are left out.
func addresses(result json.RawMessage) []string {
	var r struct {
		Interfaces []struct {
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
		IPs []struct {
			Address   string `json:"address"`
			Interface *int   `json:"interface"`
		} `json:"ips"`
		IP4, IP6 struct { // before CNI 0.3.0
			IP string `json:"ip"`
		}
	}
	if json.Unmarshal(result, &r) != nil {
		return nil
	}
	var all []string
	for _, ip := range r.IPs {
		i := ip.Interface
		if i == nil || *i < 0 || *i >= len(r.Interfaces) || r.Interfaces[*i].Sandbox != "" {
			all = append(all, ip.Address)
		}
	}
	for _, old := range []string{r.IP4.IP, r.IP6.IP} {
		if old != "" {
			all = append(all, old)
		}
	}
	return all
}
