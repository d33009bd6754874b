package history

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"
)

// hold is an address that a sandbox certainly has: from the end of an ADD that
// succeeded to the begin of the first DEL.
type hold struct {
	sandbox *sandbox
	address string
	begin   moment
	end     moment // not come: it goes on
}

// holds returns what the sandbox certainly had.
func (m *model) holds(s *sandbox) (all []hold) {
	for _, op := range s.adds {
		if !op.succeeded() {
			continue
		}
		h := hold{sandbox: s, begin: moment{op.End, op.index}, end: m.release(s, op.End)}
		for _, address := range op.Addresses {
			h.address = bare(address)
			all = append(all, h)
		}
	}
	return all
}

// release is when the first DEL after a time began.
func (m *model) release(s *sandbox, after time.Time) (first moment) {
	note := func(t time.Time, index int) {
		if !t.Before(after) {
			first.note(t, index)
		}
	}
	for _, op := range s.dels {
		note(op.Begin, op.index)
	}
	for _, i := range s.execs {
		if m.events[i].Exec.Verb == "DEL" {
			note(m.events[i].Time, i)
		}
	}
	return first
}

// addresses: no address is two pods' at one time.
func (m *model) addresses() {
	var all []hold
	for _, s := range m.inOrder {
		all = append(all, m.holds(s)...)
	}
	slices.SortStableFunc(all, func(a, b hold) int { return a.begin.time.Compare(b.begin.time) })
	holder := make(map[string]hold)
	for _, h := range all {
		before, held := holder[h.address]
		holder[h.address] = h
		if held && before.sandbox != h.sandbox && !before.end.before(h.begin.time) {
			m.breach(AddressTwice, h.sandbox, []int{before.begin.index, h.begin.index}, "got %s while %s had it", h.address, before.sandbox.name())
			if !before.end.came() || h.end.before(before.end.time) {
				holder[h.address] = before // the one that goes on for longer
			}
		}
	}
}

// interfacesOf reads the interfaces of a CNI result: those in a sandbox by its path,
// and the names of those on the node.
func interfacesOf(result json.RawMessage) (sandboxes, onNode []string) {
	var decoded struct {
		Interfaces []struct {
			Name    string `json:"name"`
			Sandbox string `json:"sandbox"`
		} `json:"interfaces"`
	}
	if json.Unmarshal(result, &decoded) != nil {
		return nil, nil
	}
	for _, i := range decoded.Interfaces {
		if i.Sandbox != "" {
			sandboxes = append(sandboxes, i.Sandbox)
		} else {
			onNode = append(onNode, i.Name)
		}
	}
	return sandboxes, onNode
}

// addressesOf reads the addresses of a CNI result, with prefix lengths.
func addressesOf(result json.RawMessage) (addresses []string) {
	var decoded struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if json.Unmarshal(result, &decoded) != nil {
		return nil
	}
	for _, ip := range decoded.IPs {
		addresses = append(addresses, ip.Address)
	}
	return addresses
}

// results: an ADD is answered with interfaces of its own sandbox, and plugins are
// handed results of it.
func (m *model) results() {
	for _, s := range m.inOrder {
		for _, op := range s.adds {
			paths, _ := interfacesOf(op.Result)
			if op.succeeded() && slices.ContainsFunc(paths, func(path string) bool { return path != op.NetNS }) {
				m.breach(ResultOfAnother, s, []int{op.index}, "the result of its ADD has an interface in %q, its namespace is %s", paths, op.NetNS)
			}
		}
		for _, i := range s.execs {
			e := m.events[i].Exec
			paths, _ := interfacesOf(prevResultOf(e.Config))
			if e.Verb == "ADD" && slices.ContainsFunc(paths, func(path string) bool { return path != e.NetNS }) {
				m.breach(ResultOfAnother, s, []int{i}, "a plugin of its ADD was handed a result with an interface in %q, its namespace is %s", paths, e.NetNS)
			}
		}
	}
}

// networks: a sandbox that is up has a network until its removal begins.
func (m *model) networks() {
	for _, s := range m.inOrder {
		if !s.up.came() {
			continue
		}
		since := s.up.time
		added := false
		for _, op := range s.adds {
			if op.succeeded() && op.End.Before(s.up.time) {
				since, added = op.End, true // a DEL after it took what the sandbox came up with
			}
		}
		if !added && m.end >= 0 {
			m.breach(NoNetwork, s, []int{s.up.index}, "it came up, and no ADD had succeeded for it")
		}
		if del := m.release(s, since); del.came() && !s.stopping.before(del.time) {
			m.breach(NetworkLost, s, []int{s.up.index, del.index}, "DEL began before its Stop")
		}
		for _, event := range m.ownLinkEnd(s) {
			t := m.events[event].Time
			if t.After(s.up.time) && !s.stopping.before(t) {
				m.breach(NetworkLost, s, []int{s.up.index, event}, "its link %s is %s while it was up", m.events[event].Link.Name, m.events[event].Link.State)
			}
		}
	}
}

// ownLinkEnd returns for each link of the sandbox's own on the node the event by which
// it went down after it had been up.
func (m *model) ownLinkEnd(s *sandbox) (ends []int) {
	if m.lost {
		return nil
	}
	for _, name := range m.ownLinks(s) {
		up := false
		for _, i := range m.links[name] {
			if state := m.events[i].Link.State; state == LinkUp {
				up = true
			} else if up {
				ends = append(ends, i)
				break
			}
		}
	}
	return ends
}

// ownLinks names the links on the node that this sandbox alone has: not bridges.
func (m *model) ownLinks(s *sandbox) (own []string) {
	for _, name := range s.links {
		if m.users[name] == 1 {
			own = append(own, name)
		}
	}
	return own
}

// closedLinks: when a removal is reported the way to the pod is closed.
func (m *model) closedLinks() {
	if m.lost {
		return
	}
	for _, s := range m.inOrder {
		if !s.stopped.came() || m.end < 0 {
			continue
		}
		ended := make(map[string]bool)
		for _, i := range m.ownLinkEnd(s) {
			ended[m.events[i].Link.Name] = m.events[i].Time.Before(s.stopped.time.Add(lag))
		}
		for _, name := range m.ownLinks(s) {
			events := m.links[name]
			if len(events) > 0 && !ended[name] {
				m.breach(NetworkLeft, s, []int{s.stopped.index, events[len(events)-1]}, "its link %s was up after its removal was reported", name)
			}
		}
	}
}

// removals: nothing is begun for a sandbox after its removal.
func (m *model) removals() {
	for _, s := range m.inOrder {
		over := s.stopped
		if s.up.came() && s.up.before(s.stopping.time) {
			over = s.stopping // its ADD was over before
		}
		if !over.came() {
			continue
		}
		for _, op := range s.adds {
			if over.before(op.Begin) {
				m.breach(AfterRemoval, s, []int{over.index, op.index}, "ADD began after its removal")
			}
		}
		for _, i := range s.execs {
			if m.events[i].Exec.Verb == "ADD" && over.before(m.events[i].Time) {
				m.breach(AfterRemoval, s, []int{over.index, i}, "a plugin ran ADD after its removal")
			}
		}
	}
}

// waiting is an ADD from its begin to its first run of a plugin.
type waiting struct {
	op         *operation
	begin, ran time.Time
	first      bool
}

// order: an ADD is not overtaken by one that came later, unless that one is a
// critical pod's; and a critical pod's by none but such.
func (m *model) order() {
	byRun := make(map[string][]waiting)
	for _, op := range m.ops {
		if op.Verb != "ADD" || !op.Done || len(op.Runs) == 0 {
			continue
		}
		w := waiting{op: op, begin: op.Begin, ran: op.Runs[0].Begin, first: m.first[op.Pod]}
		byRun[crinetdOf(op.ID)] = append(byRun[crinetdOf(op.ID)], w)
	}
	for _, all := range byRun {
		m.orderOf(all)
	}
}

// crinetdOf is the part of an operation's id that one run of crinetd has in common.
func crinetdOf(id string) string {
	for i := len(id) - 1; i >= 0; i-- {
		if id[i] == '-' {
			return id[:i]
		}
	}
	return id
}

// orderOf goes through ADDs by their first run. earlier are those that ran clearly
// before the one at hand; of each class the one that came last is enough, and of the
// others the one that ran last.
func (m *model) orderOf(all []waiting) {
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Or(a.ran.Compare(b.ran), a.begin.Compare(b.begin)) })
	var latest [2]*waiting // by class: who came last
	var ranLast *waiting   // of those that are not first
	next := 0
	for i := range all {
		w := &all[i]
		for ; all[next].ran.Add(orderSlack).Before(w.ran); next++ {
			e := &all[next]
			class := classOf(e.first)
			if latest[class] == nil || latest[class].begin.Before(e.begin) {
				latest[class] = e
			}
			if !e.first {
				ranLast = e
			}
		}
		came := w.begin.Add(orderSlack)
		switch by := latest[classOf(w.first)]; {
		case by != nil && by.begin.After(came):
			m.breach(Order, m.sandboxes[w.op.Sandbox], []int{w.op.index, by.op.index}, "its ADD was overtaken by that of pod %s, which came later", by.op.Pod)
		case w.first && ranLast != nil && ranLast.ran.After(came):
			m.breach(Order, m.sandboxes[w.op.Sandbox], []int{w.op.index, ranLast.op.index}, "it is critical and waited, and the ADD of pod %s ran before", ranLast.op.Pod)
		}
	}
}

func classOf(first bool) int {
	if first {
		return 1
	}
	return 0
}
