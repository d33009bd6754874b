package headroom

import (
	"errors"
	"fmt"
	"strings"
)

// Exhausted returns an error that names the range of a network from which the next pod
// would get no address, nil if there is one. It answers from memory: an address may
// have been freed since. A network that does not use host-local is never exhausted.
func (c *Counter) Exhausted(network string) error {
	for _, s := range sets(c.Ranges()) {
		if s.network == network && s.free == 0 {
			return errors.New(s.exhausted())
		}
	}
	return nil
}

// set is a set of ranges of the selected network: a pod needs an address of each.
type set struct {
	network              string
	names                []string
	usable, free, leaked uint64
}

func sets(ranges []Range) []set {
	var all []set
	last := -1
	for _, r := range ranges {
		if !r.Selected {
			continue
		}
		if r.Set != last {
			all, last = append(all, set{network: r.Network}), r.Set
		}
		s := &all[len(all)-1]
		s.names = append(s.names, r.Range)
		s.usable = min(s.usable+r.Usable(), Many)
		s.free = min(s.free+r.Free, Many)
		s.leaked += r.Leaked
	}
	return all
}

func (s *set) exhausted() string {
	text := fmt.Sprintf("no addresses: network %q has given out all %d of %s", s.network, s.usable, strings.Join(s.names, ", "))
	if s.leaked > 0 {
		text += fmt.Sprintf(", %d of them leaked (crinetctl status names their files)", s.leaked)
	}
	return text
}

// few is how many free addresses a warning begins below: a tenth, but eight at least,
// or half of a range that has fewer than sixteen.
func (s *set) few() uint64 { return max(s.usable/10, min(8, (s.usable+1)/2)) }

// Left returns how many more pods the selected network has addresses for, of how many
// in all, Many at most. ok is false if its addresses do not come from host-local.
func (c *Counter) Left() (network string, free, usable uint64, ok bool) {
	for _, s := range sets(c.Ranges()) {
		if !ok || s.free < free {
			network, free, usable, ok = s.network, s.free, s.usable, true
		}
	}
	return network, free, usable, ok
}

// level is how bad a network stands.
type level int

const (
	enough level = iota
	low
	none
)

// worst returns how a network's worst set stands, and what to say of it.
func worst(ranges []Range) (network string, l level, text string) {
	for _, s := range sets(ranges) {
		network = s.network
		switch {
		case s.free == 0 && l < none:
			l, text = none, s.exhausted()
		case s.free > 0 && s.free < s.few() && l < low:
			l = low
			text = fmt.Sprintf("network %q has %d of %d addresses left in %s", s.network, s.free, s.usable, strings.Join(s.names, ", "))
			if s.leaked > 0 {
				text += fmt.Sprintf("; %d are leaked", s.leaked)
			}
		}
	}
	return network, l, text
}

// Notice is what an operator should know of the selected network's addresses although
// the network is ready; empty if there are enough. It answers from memory.
func (c *Counter) Notice() string {
	_, _, text := worst(c.Ranges())
	return text
}

// tell logs what has become worse or good again.
func (c *Counter) tell(ranges []Range) {
	network, now, text := worst(ranges)
	if network == "" {
		return
	}
	before := c.last[network]
	c.last = map[string]level{network: now}
	switch {
	case now == none && before != none:
		c.cfg.Log.Error("new pods get no address", "network", network, "reason", text)
	case now == low && before == enough:
		c.cfg.Log.Warn("addresses run out", "network", network, "reason", text)
	case now == enough && before != enough:
		c.cfg.Log.Info("there are enough addresses again", "network", network)
	}
}
