package runtime

import (
	"encoding/json"
	"fmt"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

// note is what libcni's cache keeps of a record besides its attachment.
func note(r *journal.Record) (json.RawMessage, error) {
	kept := *r
	kept.Attachment, kept.State = cni.Attachment{}, ""
	data, err := json.Marshal(kept)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: note for the cache: %w", r.Attachment.ContainerID, err)
	}
	return data, nil
}

// fromCache makes the record of a cached attachment, whose ADD succeeded. Of one
// that another crinetd or program cached, what is not told is taken from its
// arguments.
func (m *Manager) fromCache(a cni.Attachment) *journal.Record {
	r := new(journal.Record)
	if len(a.Note) == 0 || json.Unmarshal(a.Note, r) != nil {
		*r = journal.Record{Pod: podOfArgs(a.Args), BootID: m.BootID, Created: m.now().UTC()}
	}
	r.State, r.Plugin, r.Attachment = journal.Attached, m.Collector.Name(), a
	return r
}

func podOfArgs(args [][2]string) (pod journal.Pod) {
	for _, arg := range args {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			pod.Namespace = arg[1]
		case "K8S_POD_NAME":
			pod.Name = arg[1]
		case "K8S_POD_UID":
			pod.UID = arg[1]
		}
	}
	return pod
}

// rebuild fills an empty journal with what libcni's cache holds: the journal was
// damaged, or somebody removed it. Reconciliation then undoes what belongs to
// sandboxes that are gone.
func (m *Manager) rebuild() ([]*journal.Record, error) {
	if m.Collector == nil {
		return nil, nil
	}
	cached, err := m.Collector.Cached()
	if err != nil {
		return nil, err
	}
	var records []*journal.Record
	for _, a := range cached {
		r := m.fromCache(a)
		if err := m.Journal.Put(r); err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	if len(records) > 0 {
		m.Log.Warn("the journal was empty: it is filled with what the cache of CNI results holds", "attachments", len(records))
	}
	return records, nil
}
