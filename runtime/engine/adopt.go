package engine

import (
	"context"
	"fmt"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

// adopt journals the attachments of sandboxes that the runtime networked itself,
// before crinetd came, as the runtime's own cache has them: with the
// configuration, capability args and result of their ADD. From then on they are
// shown, checked and undone like crinetd's own. hostPorts of theirs stay with the
// plugin that mapped them.
func (e *Engine) adopt(listed map[string]bool) error {
	if e.foreign == nil {
		return nil
	}
	cached, err := e.foreign.Cached("")
	if err != nil {
		return fmt.Errorf("adopt the pods that the runtime networked before crinetd came: %w", err)
	}
	adopted := 0
	for _, a := range cached {
		// One without namespace has stopped: the runtime's DEL ends it.
		if !listed[a.ContainerID] || !isNetNS(a.NetNS) || e.flights.has(keyOf(a)) {
			continue
		}
		added, err := e.addRecord(e.adoptedRecord(a))
		if err != nil {
			return err
		}
		if added {
			adopted++
		}
	}
	if adopted > 0 {
		e.log.Info("pods that the runtime networked before crinetd came are adopted", "pods", adopted)
	}
	return nil
}

// foreignRecord is the record of one attachment that the runtime made itself, for
// its DEL; nil if the runtime's cache has none.
func (e *Engine) foreignRecord(key journal.Key) (*journal.Record, error) {
	if e.foreign == nil {
		return nil, nil
	}
	cached, err := e.foreign.Cached(key.ContainerID)
	if err != nil {
		return nil, err
	}
	for _, a := range cached {
		if keyOf(a) == key {
			return e.adoptedRecord(a), nil
		}
	}
	return nil, nil
}

func (e *Engine) adoptedRecord(a cni.Attachment) *journal.Record {
	r := &journal.Record{
		State: journal.Attached, Plugin: cni.Name, Attachment: a, BootID: e.bootID, Created: e.now().UTC(), Adopted: true,
	}
	for _, arg := range a.Args {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			r.Pod.Namespace = arg[1]
		case "K8S_POD_NAME":
			r.Pod.Name = arg[1]
		case "K8S_POD_UID":
			r.Pod.UID = arg[1]
		}
	}
	return r
}

func keyOf(a cni.Attachment) journal.Key {
	return journal.Key{ContainerID: a.ContainerID, IfName: a.IfName}
}

// addRecord journals a record, unless there is one of its attachment by now.
func (e *Engine) addRecord(r *journal.Record) (added bool, err error) {
	unlock, err := e.locks.lock(context.Background(), r.Key(), "record")
	if err != nil {
		return false, err
	}
	defer unlock()
	if now, err := e.journal.Get(r.Key()); err != nil || now != nil {
		return false, err
	}
	return true, e.journal.Put(r)
}
