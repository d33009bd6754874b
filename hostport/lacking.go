package hostport

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// Lacking compares what a pod needs in the table with the kernel as it is now, and
// names what is missing or wrong; nil if all is there. It changes nothing, and waits
// for no change under way. A pod that the Manager does not know, as before Sync, is
// compared with what it would need.
func (m *Manager) Lacking(ctx context.Context, pod Pod) (missing []string, err error) {
	return m.Look().Lacking(ctx, pod)
}

// Look is one look at the table, for several pods. It is for one goroutine at a time,
// and for a moment: the table is read when the first pod is asked for that needs it.
type Look struct {
	manager  *Manager
	read     bool
	err      error
	wrong    []string // of the table as a whole
	found    map[kernel.Key]kernel.Element
	localnet map[string]bool // interface -> route_localnet is on
}

// Look looks at the table.
func (m *Manager) Look() *Look { return &Look{manager: m, localnet: make(map[string]bool)} }

// Lacking is Manager.Lacking.
func (l *Look) Lacking(ctx context.Context, pod Pod) (missing []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("compare the table inet %s with what %s needs: %w", tableName, pod, err)
	}
	needed, err := l.manager.neededBy(pod)
	if err != nil || len(needed.own)+len(needed.shared) == 0 {
		return nil, err
	}
	if !l.read {
		l.read, l.err = true, l.readTable()
	}
	if l.err != nil {
		return nil, l.err
	}
	missing = append(missing, l.wrong...)
	if l.found == nil {
		return missing, nil
	}
	for _, e := range slices.Concat(needed.own, needed.shared) {
		// Of elements that pods share, another pod's may stand.
		has, ok := l.found[e.Key]
		if !ok || has.Value != e.Value {
			missing = append(missing, describe(e.Key))
		}
	}
	off, err := l.localnetOff(needed.localnet)
	if off {
		missing = append(missing, fmt.Sprintf("route_localnet on %s, which is off", needed.localnet))
	}
	return missing, err
}

// readTable reads the table with a handle of its own: the Manager's takes one call at
// a time.
func (l *Look) readTable() (err error) {
	now := kernel.New(l.manager.netns, newLayout())
	defer func() { err = errors.Join(err, now.Close()) }()
	why, err := now.Intact()
	if errors.Is(err, unix.ENOENT) {
		l.wrong = []string{fmt.Sprintf("the table inet %s does not exist", tableName)}
		return nil
	}
	if err != nil {
		return err
	}
	if why != "" {
		l.wrong = append(l.wrong, why)
	}
	found, err := now.Elements()
	if errors.Is(err, unix.ENOENT) {
		l.wrong = append(l.wrong, "a set of the table does not exist")
		return nil
	}
	if err != nil {
		return err
	}
	l.found = found
	return nil
}

// localnetOff says that an interface exists and that its route_localnet is off.
func (l *Look) localnetOff(name string) (bool, error) {
	if name == "" {
		return false, nil
	}
	on, known := l.localnet[name]
	if !known {
		state, err := kernel.New(l.manager.netns, newLayout()).RouteLocalnet([]string{name})
		if err != nil {
			return false, err
		}
		value, exists := state[name]
		on = value || !exists
		l.localnet[name] = on
	}
	return !on, nil
}

// neededBy is what a pod has in the table if all is well.
func (m *Manager) neededBy(pod Pod) (need, error) {
	m.mu.Lock()
	if known := m.pods[pod.SandboxID]; known != nil {
		defer m.mu.Unlock()
		return known.need, nil
	}
	m.mu.Unlock()
	facts, err := m.factsAbout(pod)
	if err != nil {
		return need{}, err
	}
	return needOf(pod, facts)
}

// describe names an element for people.
func describe(key kernel.Key) string {
	for _, f := range families() {
		if mapping, ok := f.mappingOf(key); ok {
			return "hostPort " + mapping.String()
		}
		address, ok := netip.AddrFromSlice([]byte(key.Bytes[:min(len(key.Bytes), f.AddrLen())]))
		switch {
		case ok && key.Set == f.masquerade:
			return fmt.Sprintf("masquerade of %s", address)
		case ok && key.Set == f.hairpin:
			return fmt.Sprintf("masquerade of %s to itself", address)
		}
	}
	if key.Set == branchOutside {
		return "the chain " + kernel.BranchChain(branchOutside, key.Bytes)
	}
	return "an element of the set " + key.Set
}

// Recheck has Run look at the table and the interfaces at once, and put them right.
// What route_localnet was set to by somebody else is noticed in no other way before the
// next interval.
func (m *Manager) Recheck(why string) { raise(m.alarms, why) }
