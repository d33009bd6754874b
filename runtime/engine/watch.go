package engine

import (
	"context"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Hold calls do with the record of an attachment that stands and that nobody ends, while
// no other operation can change it. It says whether it did: an attachment that is in
// the making, is being removed, or is gone, is not held, and neither is a trial.
func (e *Engine) Hold(ctx context.Context, key journal.Key, do func(*journal.Record)) (held bool, err error) {
	if !e.settled(key) {
		return false, nil
	}
	unlock, err := e.locks.lock(ctx, key, "look")
	if err != nil {
		return false, err
	}
	defer unlock()
	r, err := e.journal.Get(key)
	if err != nil || r == nil || r.Trial || !e.Stands(r) || !e.settled(key) {
		return false, err
	}
	do(r)
	return true, nil
}

// settled says that no call in flight has made the attachment and none ends it.
func (e *Engine) settled(key journal.Key) bool {
	return !e.flights.has(key) && !e.ending.has(key.ContainerID)
}

// CheckHeld runs CHECK for an attachment that stands, as Hold does, and is not recorded:
// crinetd asks for itself again and again, and nobody would find anything else among
// the operations. held is as for Hold.
func (e *Engine) CheckHeld(ctx context.Context, key journal.Key) (held bool, said error, err error) {
	held, err = e.Hold(ctx, key, func(r *journal.Record) {
		if plugin := e.plugins[r.Plugin]; plugin != nil {
			said = plugin.CheckPod(ctx, &r.Attachment)
		}
	})
	return held, said, err
}
