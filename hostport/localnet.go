package hostport

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// recordName is the name in Records of the interfaces on which crinet switched
// route_localnet on: a JSON list of their names.
const recordName = "hostport/route_localnet"

// localnetChange is what differs between the desired state of route_localnet and
// the kernel's.
type localnetChange struct {
	// on and off are to be switched; forget are off already, or gone.
	on, off, forget []string
}

// compareLocalnet compares the named interfaces. Pods need route_localnet on some;
// on the recorded ones crinet switched it on; state has those that exist.
func compareLocalnet[T any](names []string, needed map[string]T, recorded map[string]struct{}, state map[string]bool) localnetChange {
	var c localnetChange
	for _, name := range names {
		_, need := needed[name]
		_, ours := recorded[name]
		on, exists := state[name]
		switch {
		case need && exists && !on:
			c.on = append(c.on, name)
		case ours && !need && on:
			c.off = append(c.off, name)
		case ours && !need:
			c.forget = append(c.forget, name)
		}
	}
	return c
}

// beginLocalnet does what comes before the transaction: interfaces to be switched
// on are recorded, and those to be switched off are. One that cannot be switched off
// stays recorded, and guarded, until a later check succeeds. It returns the
// interfaces to be switched on.
func (m *Manager) beginLocalnet(ctx context.Context, names []string) ([]string, error) {
	m.stuck = nil
	if len(names) == 0 {
		return nil, nil
	}
	state, err := m.host.RouteLocalnet(names)
	if err != nil {
		return nil, err
	}
	c := compareLocalnet(names, m.desired.localnet, m.recorded, state)
	for _, name := range c.on {
		m.recorded[name] = struct{}{}
	}
	if len(c.on) > 0 {
		if err := m.saveRecord(); err != nil {
			for _, name := range c.on {
				delete(m.recorded, name)
			}
			return nil, err
		}
	}
	for _, name := range c.off {
		if err := m.host.SetRouteLocalnet(name, false); err != nil {
			m.log.ErrorContext(ctx, "route_localnet stays on for now", "interface", name, "error", err)
			m.stuck = fmt.Errorf("route_localnet stays on on interfaces that no longer need it: %w", err)
			continue
		}
		c.forget = append(c.forget, name)
	}
	for _, name := range c.forget {
		delete(m.recorded, name)
	}
	m.desired.set(needOfRecord, recordNeed(m.recorded))
	return c.on, nil
}

// endLocalnet does what comes after the transaction.
func (m *Manager) endLocalnet(ctx context.Context, enable []string) error {
	var wrong problems
	for _, name := range enable {
		if err := m.host.SetRouteLocalnet(name, true); err != nil {
			wrong.add(err)
		}
	}
	// What is recorded and off already does no harm, and is saved next time.
	if err := m.saveRecord(); err != nil {
		m.log.ErrorContext(ctx, "the record of route_localnet names too many interfaces for now", "error", err)
	}
	return wrong.err()
}

func recordNeed(recorded map[string]struct{}) need {
	var n need
	for name := range recorded {
		n.shared = append(n.shared, localnetElement(name))
	}
	return n
}

// allInterfaces are those on which route_localnet is, or should be, on.
func (m *Manager) allInterfaces() []string {
	all := maps.Clone(m.recorded)
	for name := range m.desired.localnet {
		all[name] = struct{}{}
	}
	return slices.Collect(maps.Keys(all))
}

// interfacesOf are those on which the exchange of two pods may change something:
// the one that the next pod needs, and the one that nobody needs any more.
func (m *Manager) interfacesOf(old, next *mapped) []string {
	var names []string
	if next != nil && next.need.localnet != "" {
		names = append(names, next.need.localnet)
	}
	if old != nil && old.need.localnet != "" && m.desired.localnet[old.need.localnet] == nil {
		names = append(names, old.need.localnet)
	}
	return names
}

// saveRecord stores the record if it differs from what is stored.
func (m *Manager) saveRecord() error {
	if m.records == nil || maps.Equal(m.recorded, m.saved) {
		return nil
	}
	value, err := json.Marshal(slices.AppendSeq([]string{}, maps.Keys(m.recorded)))
	if err == nil {
		err = m.records.PutMeta(recordName, value)
	}
	if err != nil {
		return fmt.Errorf("record on which interfaces route_localnet is switched on: %w", err)
	}
	m.saved = maps.Clone(m.recorded)
	return nil
}

// loadRecord reads on which interfaces an earlier run switched route_localnet on:
// from Records or, if nothing was ever stored there, from the table.
func (m *Manager) loadRecord() error {
	var names []string
	if m.records != nil {
		value, err := m.records.Meta(recordName)
		if err == nil && value != nil {
			err = json.Unmarshal(value, &names)
		}
		if err != nil {
			return fmt.Errorf("read on which interfaces route_localnet was switched on: %w", err)
		}
		if value != nil {
			m.recorded = setOf(names)
			m.saved = setOf(names)
			return nil
		}
	}
	found, err := m.host.Elements(setRouteLocalnet)
	if errors.Is(err, unix.ENOENT) { // no table
		return nil
	}
	if err != nil {
		return err
	}
	for key := range found {
		names = append(names, kernel.InterfaceIn(key.Bytes))
	}
	m.recorded = setOf(names)
	return nil
}

func setOf(names []string) map[string]struct{} {
	set := make(map[string]struct{}, len(names))
	for _, name := range names {
		set[name] = struct{}{}
	}
	return set
}
