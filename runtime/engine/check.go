package engine

import (
	"context"
	"fmt"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Check is CHECK for one attachment: whether it is as ADD made it. An attachment
// that the journal does not hold as attached has code 3, unknown container.
func (e *Engine) Check(ctx context.Context, key journal.Key) error {
	unlock, err := e.locks.lock(ctx, key, "CHECK")
	if err != nil {
		return err
	}
	defer unlock()
	r, err := e.journal.Get(key)
	if err != nil {
		return err
	}
	if r == nil || r.State != journal.Attached {
		return wire.Errorf(wire.CodeUnknownContainer, "sandbox %s has no network of crinet's", key.ContainerID)
	}
	plugin := e.plugins[r.Plugin]
	if plugin == nil {
		return fmt.Errorf("network plugin %q is unknown", r.Plugin)
	}
	ctx, recorded := e.record(ctx, "CHECK", r)
	err = plugin.CheckPod(ctx, &r.Attachment)
	recorded(r, nil, err)
	return err
}

// Stands says whether a record's attachment stands on the node; otherwise it is
// still to be undone.
func (e *Engine) Stands(r *journal.Record) bool {
	return r.State == journal.Attached && r.BootID == e.bootID
}
