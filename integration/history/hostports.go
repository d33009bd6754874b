package history

import (
	"slices"
	"time"
)

// life is an element from the transaction that added it to the one that removed it.
type life struct {
	Element
	begin, end moment // no end: it stands
}

// stood says whether the element stood at the time of the event with an index.
func (l *life) stood(index int) bool {
	return l.begin.index < index && (!l.end.came() || l.end.index > index)
}

// replayTable finds the lives of all elements that map hostPorts.
func (m *model) replayTable() {
	type key struct{ set, key string }
	standing := make(map[key]*life)
	for i := range m.events {
		if m.events[i].Kind != TableChange {
			continue
		}
		t, now := m.events[i].Table, moment{m.events[i].Time, i}
		next := make(map[key]*Element)
		for _, e := range t.Removed {
			next[key{e.Set, e.Key}] = nil
		}
		if t.Reset {
			for k := range standing {
				next[k] = nil
			}
		}
		for j, e := range t.Added {
			if e.Address != "" {
				next[key{e.Set, e.Key}] = &t.Added[j]
			}
		}
		for k, e := range next {
			old := standing[k]
			if old != nil && e != nil && old.Element == *e {
				continue
			}
			if old != nil {
				old.end = now
				delete(standing, k)
			}
			if e != nil {
				standing[k] = &life{Element: *e, begin: now}
				m.lives = append(m.lives, standing[k])
				m.livesOf[e.Comment] = append(m.livesOf[e.Comment], standing[k])
			}
		}
	}
}

// hostPortsOfPods: the hostPorts of a pod that is up stand until its removal begins.
func (m *model) hostPortsOfPods() {
	if m.lost || m.end < 0 || len(m.lives) == 0 {
		return
	}
	for _, s := range m.inOrder {
		for _, port := range s.hostPorts {
			m.hostPortOf(s, port)
		}
	}
}

func (m *model) hostPortOf(s *sandbox, port string) {
	var last *life
	for _, l := range m.ownLives(s) {
		// One of an earlier sandbox of the pod had gone before this one came up.
		if l.Key != port || !s.has(l.Address) || l.end.before(s.up.time) {
			continue
		}
		if last == nil || last.begin.index < l.begin.index {
			last = l
		}
	}
	switch {
	case last == nil:
		m.breach(HostPortLost, s, []int{s.up.index}, "its hostPort %s was not in the table while it was up", port)
	case last.end.came() && !s.stopping.before(last.end.time):
		m.breach(HostPortLost, s, []int{s.up.index, last.end.index}, "its hostPort %s went while it was up", port)
	}
}

// ownLives are the elements of the sandbox's pod that can be the sandbox's: they came
// since its first ADD began, and not long after its removal did. Elements are in the
// order in which they came.
func (m *model) ownLives(s *sandbox) []*life {
	all := m.livesOf[s.pod]
	if len(s.adds) > 0 {
		from, _ := slices.BinarySearchFunc(all, s.adds[0].Begin, func(l *life, t time.Time) int { return l.begin.time.Compare(t) })
		all = all[from:]
	}
	if s.stopping.came() {
		to, _ := slices.BinarySearchFunc(all, s.stopping.time.Add(lag), func(l *life, t time.Time) int { return l.begin.time.Compare(t) })
		all = all[:to]
	}
	return all
}

// elements: an element leads to its owner, and to nobody else at any time.
func (m *model) elements() {
	if m.lost {
		return
	}
	holders := make(map[string][]hold) // by address
	for _, s := range m.inOrder {
		m.elementsAtEnd(s)
		for _, h := range m.holds(s) {
			holders[h.address] = append(holders[h.address], h)
		}
	}
	for _, all := range holders {
		slices.SortStableFunc(all, func(a, b hold) int { return a.begin.time.Compare(b.begin.time) })
	}
	for _, l := range m.lives {
		m.elementIsOwned(l)
		m.elementLeads(l, holders[l.Address])
	}
}

// elementLeads looks for others who had the address of an element while it stood. Those
// who had it are in order, and of those that got it before the element came one at most
// still had it: two would break the rule of addresses.
func (m *model) elementLeads(l *life, holders []hold) {
	for _, h := range slices.Backward(holders) {
		if l.end.came() && l.end.time.Before(h.begin.time.Add(lag)) {
			continue
		}
		if h.sandbox.pod != l.Comment && !h.end.before(l.begin.time.Add(lag)) {
			m.breach(HostPortOfAnother, h.sandbox, []int{l.begin.index, h.begin.index},
				"hostPort %s of pod %s led to its address %s", l.Key, l.Comment, l.Address)
		}
		if h.begin.before(l.begin.time) {
			return
		}
	}
}

// elementsAtEnd: when DEL closes the way to a pod, and when its removal is reported, its
// hostPorts are gone. A link that goes without a DEL is the runtime's doing: it removes
// the namespace of a sandbox that failed also when its DEL did not reach crinetd. The
// address is not free then.
func (m *model) elementsAtEnd(s *sandbox) {
	begun := m.firstDelRun(s)
	for _, end := range m.ownLinkEnd(s) {
		if !begun.before(m.events[end].Time) {
			continue
		}
		for _, l := range m.ownLives(s) {
			if s.addrs[l.Address] && l.stood(end) {
				m.breach(HostPortLeft, s, []int{l.begin.index, end}, "hostPort %s stood when its link %s went down", l.Key, m.events[end].Link.Name)
			}
		}
	}
	if !s.stopped.came() {
		return
	}
	for _, l := range m.ownLives(s) {
		if s.addrs[l.Address] && l.begin.before(s.stopped.time) && (!l.end.came() && m.end >= 0 || l.end.came() && l.end.time.After(s.stopped.time.Add(lag))) {
			m.breach(HostPortLeft, s, []int{l.begin.index, s.stopped.index}, "hostPort %s stood after its removal was reported", l.Key)
		}
	}
}

// firstDelRun is when a plugin was first certainly run with DEL for the sandbox. The
// operation begins earlier: it unmaps the hostPorts first, and may wait with that until the
// table has been read.
func (m *model) firstDelRun(s *sandbox) (first moment) {
	for _, op := range s.dels {
		for _, r := range op.Runs {
			first.note(r.Begin, op.index)
		}
	}
	for _, i := range s.execs {
		if m.events[i].Exec.Verb == "DEL" {
			first.note(m.events[i].Time, i)
		}
	}
	return first
}

// elementIsOwned: an element comes for a sandbox whose ADD has begun and whose removal
// has not been reported.
func (m *model) elementIsOwned(l *life) {
	proof := []int{l.begin.index}
	for _, s := range slices.Backward(m.byPod[l.Comment]) { // the one that came last, as a rule
		if !s.has(l.Address) || !slices.ContainsFunc(s.adds, func(op *operation) bool { return op.Begin.Before(l.begin.time) }) {
			continue
		}
		over := m.removalOf(s)
		if !over.before(l.begin.time.Add(-lag)) {
			return
		}
		proof = []int{over.index, l.begin.index}
	}
	m.breach(AfterRemoval, nil, proof, "hostPort %s of pod %s was mapped to %s, and no sandbox of the pod has that address and is to stand", l.Key, l.Comment, l.Address)
}

// removalOf is when the removal of a sandbox was reported, or crinetd's DEL had
// succeeded, whatever was later: both say that nothing may come.
func (m *model) removalOf(s *sandbox) moment {
	over := s.stopped
	begun := time.Time{}
	if n := len(s.adds); n > 0 {
		begun = s.adds[n-1].Begin
	}
	for _, op := range s.dels {
		if op.succeeded() && op.Begin.After(begun) && (!over.came() || op.End.Before(over.time)) {
			return moment{op.End, op.index}
		}
	}
	return over
}
