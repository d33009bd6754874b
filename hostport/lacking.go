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
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("compare the table inet %s with what %s needs: %w", tableName, pod, err)
	}
	// A handle of its own: the Manager's takes one call at a time.
	now := kernel.New(m.netns, newLayout())
	defer func() { err = errors.Join(err, now.Close()) }()
	needed, err := m.neededBy(pod)
	if err != nil || len(needed.own)+len(needed.shared) == 0 {
		return nil, err
	}
	why, err := now.Intact()
	if errors.Is(err, unix.ENOENT) {
		return []string{fmt.Sprintf("the table inet %s does not exist", tableName)}, nil
	}
	if err != nil {
		return nil, err
	}
	if why != "" {
		missing = append(missing, why)
	}
	found, err := now.Elements()
	if errors.Is(err, unix.ENOENT) {
		return append(missing, "a set of the table does not exist"), nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Concat(needed.own, needed.shared) {
		// Of elements that pods share, another pod's may stand.
		has, ok := found[e.Key]
		if !ok || has.Value != e.Value {
			missing = append(missing, describe(e.Key))
		}
	}
	return missing, nil
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
