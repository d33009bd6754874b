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
	if err := m.setUp(ctx, record); err != nil {
		return nil, m.abandon(ctx, record, err)
	}
	record.State = journal.Attached
	record.Steps = life.end(m.now())
	if err := errors.Join(m.Journal.Put(record), callerGone(ctx)); err != nil {
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
	attachment, err := m.Plugin.Plan(cni.Attachment{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName,
		Args: call.Args, CapabilityArgs: capabilities,
	})
	if err != nil {
		return nil, tryAgainLater(fmt.Errorf("network not ready: %w", err))
	}
	record := &journal.Record{
		State: journal.Attaching, Plugin: m.Plugin.Name(), Pod: pod, Attachment: *attachment,
		BootID: m.BootID, Created: m.now().UTC(),
	}
	if err := m.Journal.Put(record); err != nil {
		return nil, tryAgainLater(fmt.Errorf("cannot journal the pod's network, so it gets none: %w", err))
	}
	return record, nil
}

// setUp calls the plugin.
func (m *Manager) setUp(ctx context.Context, r *journal.Record) error {
	start := m.now()
	result, err := m.Plugin.SetUpPod(ctx, &r.Attachment)
	m.Metrics.plugin("ADD", err, m.now().Sub(start))
	if err != nil {
		return err
	}
	r.Attachment.Result = result
	return callerGone(ctx)
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

// addresses are those of a CNI result, for people.
func addresses(result json.RawMessage) []string {
	var r struct {
		IPs []struct{ Address string } `json:"ips"`
		IP4 *struct{ IP string }       `json:"ip4"` // before CNI 0.3.0
		IP6 *struct{ IP string }       `json:"ip6"`
	}
	if json.Unmarshal(result, &r) != nil {
		return nil
	}
	var all []string
	for _, ip := range r.IPs {
		all = append(all, ip.Address)
	}
	if r.IP4 != nil {
		all = append(all, r.IP4.IP)
	}
	if r.IP6 != nil {
		all = append(all, r.IP6.IP)
	}
	return all
}
