package runtime

import (
	"context"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Del is the runtime's DEL. It uses what the journal says of the attachment, not
// what the call brings: the configuration may have changed since ADD. It is
// idempotent.
func (m *Manager) Del(ctx context.Context, call *cnihook.Call) error {
	key := journal.Key{ContainerID: call.ContainerID, IfName: call.IfName}
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		return tryAgainLater(err)
	}
	defer unlock()
	r, err := m.Journal.Get(key)
	switch {
	case err != nil:
		return err
	case r != nil:
		return m.detach(ctx, r)
	case m.removed.has(key):
		return nil // the runtime's second DEL
	default:
		return m.detachUnknown(ctx, key, call)
	}
}

// detachUnknown handles a sandbox that crinetd has no record of: it was
// networked before crinetd came, or its removal ended before crinetd's last
// start. The selected network's DEL is the best that can be done for the first
// and does nothing for the second (CNI spec, section DEL).
func (m *Manager) detachUnknown(ctx context.Context, key journal.Key, call *cnihook.Call) error {
	log := m.Log.With("pod", podOf(call), "sandbox", key.ContainerID)
	capabilities, err := m.capabilityArgs(call)
	if err != nil {
		log.Warn("DEL for an unknown sandbox: runtimeConfig left out", "err", err)
	}
	a := cni.Attachment{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName,
		Args: call.Args, CapabilityArgs: capabilities,
	}
	if !isNetNS(a.NetNS) {
		a.NetNS = ""
	}
	plan, err := m.Plugin.Plan(a)
	if err != nil {
		log.Warn("DEL for an unknown sandbox: nothing to call", "err", err)
		return nil
	}
	log.Info("DEL for an unknown sandbox: calling the selected network's", "network", plan.Network)
	if err := m.Plugin.TearDownPod(ctx, plan); err != nil {
		return err
	}
	m.removed.add(key)
	return nil
}

// Check is the runtime's CHECK.
func (m *Manager) Check(ctx context.Context, call *cnihook.Call) error {
	key := journal.Key{ContainerID: call.ContainerID, IfName: call.IfName}
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		return tryAgainLater(err)
	}
	defer unlock()
	r, err := m.Journal.Get(key)
	if err != nil {
		return err
	}
	if r == nil || r.State != journal.Attached {
		return types.NewError(types.ErrUnknownContainer,
			"sandbox "+call.ContainerID+" has no network", "")
	}
	plugin := m.plugins[r.Plugin]
	if plugin == nil {
		return fmt.Errorf("network plugin %q is unknown", r.Plugin)
	}
	return plugin.CheckPod(ctx, &r.Attachment)
}
