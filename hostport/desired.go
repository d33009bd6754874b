package hostport

import (
	"cmp"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// Needs of the Manager's own, beside those of the pods, which go by sandbox ID.
const (
	needOfRecord    = "\x00record"    // interfaces that route_localnet is to be switched off on
	needOfProtected = "\x00protected" // addresses that are never translated
)

// desired is the state that the kernel should be in: the union of what the pods
// need. It is kept so that a change of one pod takes work for that pod only.
type desired struct {
	needs    map[string]need                          // sandbox ID -> what that pod needs
	elements map[kernel.Key]kernel.Element            // key -> the element that the table should hold
	sharing  map[kernel.Key]map[string]kernel.Element // key of a shared element -> sandbox ID -> its element
	localnet map[string]map[string]struct{}           // interface -> IDs of sandboxes that need route_localnet on it
	// changed holds the elements as they were when the kernel was last made equal to
	// the desired state, for the keys that were touched since.
	changed map[kernel.Key]kernel.Element // key -> old element, the zero Element if there was none
}

func newDesired() *desired {
	return &desired{
		needs:    make(map[string]need),
		elements: make(map[kernel.Key]kernel.Element),
		sharing:  make(map[kernel.Key]map[string]kernel.Element),
		localnet: make(map[string]map[string]struct{}),
		changed:  make(map[kernel.Key]kernel.Element),
	}
}

// set replaces what one sandbox needs; the zero need removes it.
func (d *desired) set(id string, next need) {
	old := d.needs[id]
	for _, e := range old.own {
		d.put(e.Key, kernel.Element{})
	}
	for _, e := range old.shared {
		delete(d.sharing[e.Key], id)
		d.putShared(e.Key)
	}
	if users := d.localnet[old.localnet]; users != nil {
		delete(users, id)
		if len(users) == 0 {
			delete(d.localnet, old.localnet)
		}
	}
	delete(d.needs, id)
	if len(next.own)+len(next.shared) == 0 {
		return
	}
	d.needs[id] = next
	for _, e := range next.own {
		d.put(e.Key, e)
	}
	for _, e := range next.shared {
		if d.sharing[e.Key] == nil {
			d.sharing[e.Key] = make(map[string]kernel.Element)
		}
		d.sharing[e.Key][id] = e
		d.putShared(e.Key)
	}
	if next.localnet != "" {
		if d.localnet[next.localnet] == nil {
			d.localnet[next.localnet] = make(map[string]struct{})
		}
		d.localnet[next.localnet][id] = struct{}{}
	}
}

// putShared puts the element of those that share the key. Elements without a
// comment are alike; of several with one, as of pods with one address, the first by
// comment and value stands, so that the result depends on nothing but the pods.
func (d *desired) putShared(key kernel.Key) {
	var chosen kernel.Element
	for _, e := range d.sharing[key] {
		if chosen.Set == "" || cmp.Or(cmp.Compare(e.Comment, chosen.Comment), cmp.Compare(e.Value, chosen.Value)) < 0 {
			chosen = e
		}
		if chosen.Comment == "" {
			break
		}
	}
	if chosen.Set == "" {
		delete(d.sharing, key)
	}
	d.put(key, chosen)
}

// put sets or, with the zero Element, deletes an element.
func (d *desired) put(key kernel.Key, e kernel.Element) {
	if _, ok := d.changed[key]; !ok {
		d.changed[key] = d.elements[key]
	}
	if e.Set == "" {
		delete(d.elements, key)
		return
	}
	d.elements[key] = e
}

// pending is the update that the kernel lacks, if it was equal to the desired
// state when settled was called last.
func (d *desired) pending() kernel.Update {
	var u kernel.Update
	for key, before := range d.changed {
		now := d.elements[key]
		if now == before {
			continue
		}
		if before.Set != "" {
			u.Remove = append(u.Remove, before)
		}
		if now.Set != "" {
			u.Add = append(u.Add, now)
		}
	}
	return u
}

// settled says that the kernel is equal to the desired state.
func (d *desired) settled() { clear(d.changed) }
