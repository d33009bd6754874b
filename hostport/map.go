package hostport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// Map maps the pod's ports and masquerades its addresses, in one transaction; if it
// fails nothing is done. A pod that has neither has nothing in the table.
// Ports that a reservation of the same pod (namespace, name, UID) holds become
// the sandbox's. Mapping a sandbox again changes what differs and keeps the rest.
// Afterwards the UDP and SCTP flows that came to the ports before are deleted from
// connection tracking; should that fail, the mapping stands, and the error says
// so. On a kernel that cannot delete flows at all it is not an error, see Report.
// The ports of a pod that is Foreign are held only.
func (m *Manager) Map(ctx context.Context, pod Pod) error {
	if pod.SandboxID == "" {
		return fmt.Errorf("%s %s: it has no sandbox ID", pod.task(), pod)
	}
	if len(pod.Mappings)+len(pod.Masquerade) == 0 {
		return m.Unmap(ctx, pod.SandboxID)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", pod.task(), pod, err)
	}
	changed, err := m.mapPod(ctx, pod)
	if err != nil {
		return fmt.Errorf("%s %s: %w", pod.task(), pod, err)
	}
	if pod.Foreign {
		return nil
	}
	if err := m.endFlows(ctx, flowChange{mappings: changed, pod: pod}); err != nil {
		return fmt.Errorf("the hostPorts of %s are mapped, but older flows were not ended: %w", pod, err)
	}
	return nil
}

// mapPod returns the mappings that were not there before, or are no more.
func (m *Manager) mapPod(ctx context.Context, pod Pod) ([]Mapping, error) {
	known, err := m.factsAbout(pod)
	if err != nil {
		return nil, err
	}
	needed, err := needOf(pod, known)
	if err != nil {
		return nil, err
	}
	next := &mapped{owner: ownerOf(pod), pod: pod, full: needed}

	m.mu.Lock()
	defer m.mu.Unlock()
	next.need = m.yielding(needed)
	m.warn(ctx, pod, next.need)
	if !m.managing { // with trouble, a try may succeed
		return nil, m.available()
	}
	own := func(o *owner) bool {
		return o.identity == next.owner.identity && (o.sandbox == "" || o.sandbox == pod.SandboxID)
	}
	if err := m.claims.check(pod.Mappings, own); err != nil {
		return nil, err
	}
	old := m.pods[pod.SandboxID]
	if err := m.exchange(ctx, pod.SandboxID, next); err != nil {
		return nil, err
	}
	return changedMappings(old, next), nil
}

// Unmap takes away what a sandbox has in the table, in one transaction, and deletes the
// UDP and SCTP flows that came through them, as Map does. A sandbox that has none is
// no error. If the transaction fails the mappings are still the sandbox's, and Unmap
// must be called again. route_localnet is switched off with the last pod that needs
// it; should that fail, Run tries again. Before [Manager.Sync] Unmap waits for it: an
// earlier run may have mapped ports that are not known yet, and who calls Unmap frees
// the address next.
func (m *Manager) Unmap(ctx context.Context, sandboxID string) error {
	select {
	case <-m.synced:
	case <-ctx.Done():
		return fmt.Errorf("undo: map the hostPorts of sandbox %s: the table is not read yet: %w", sandboxID, context.Cause(ctx))
	}
	m.mu.Lock()
	old := m.pods[sandboxID]
	var err error
	if old != nil {
		err = m.exchange(ctx, sandboxID, nil)
	}
	m.mu.Unlock()
	if old == nil {
		return nil
	}
	if err == nil && old.pod.Foreign {
		return nil
	}
	if err != nil {
		return fmt.Errorf("undo: %s %s: %w", old.pod.task(), old.owner, err)
	}
	if err := m.endFlows(ctx, flowChange{old.pod.Mappings, old.pod, true}); err != nil {
		return fmt.Errorf("the hostPorts of %s are unmapped, but their flows were not ended: %w", old.owner, err)
	}
	return nil
}

// exchange replaces a sandbox's pod, nil for none, in the desired state and in the
// kernel. When it fails the desired state is as before, and Run makes the kernel
// equal to it.
func (m *Manager) exchange(ctx context.Context, id string, next *mapped) error {
	old := m.pods[id]
	m.desired.set(id, next.needed())
	_, err := m.settle(ctx, m.interfacesOf(old, next), false)
	if err != nil {
		m.desired.set(id, old.needed())
		raise(m.alarms, "a change of a pod failed")
		return err
	}
	if m.stuck != nil {
		raise(m.alarms, m.stuck.Error())
	}
	m.trouble = nil
	if old != nil {
		m.claims.release(old.owner)
		delete(m.pods, id)
	}
	if next != nil {
		m.adopt(next)
	}
	return nil
}

// adopt makes the pod one whose mappings stand.
func (m *Manager) adopt(next *mapped) {
	m.takeOver(next.owner)
	m.claims.add(next.owner)
	m.pods[next.owner.sandbox] = next
}

func (p *mapped) needed() need {
	if p == nil {
		return need{}
	}
	return p.need
}

// factsAbout asks the kernel about the way to the pod, which matters to mappings.
func (m *Manager) factsAbout(pod Pod) (known facts, err error) {
	if len(pod.Mappings) == 0 {
		return facts{}, nil
	}
	for i, f := range families() {
		ip := f.addrOf(pod)
		if !ip.IsValid() {
			continue
		}
		if known.paths[i], err = m.host.PathTo(ip); err != nil {
			return facts{}, err
		}
		if known.kind == "" {
			known.kind = kindOf(pod, f)
		}
	}
	return known, nil
}

// kindOf returns the kind of the pod's interface. It is for warnings: whatever keeps
// the namespace from being read is no error.
func kindOf(pod Pod, f family) string {
	if pod.NetNS == "" {
		return ""
	}
	file, err := os.Open(pod.NetNS)
	if err != nil {
		return ""
	}
	kind, err := kernel.KindOf(int(file.Fd()), f.addrOf(pod))
	if errors.Join(err, file.Close()) != nil {
		return ""
	}
	return kind
}

// warn logs from where the pod's mappings do not answer.
func (m *Manager) warn(ctx context.Context, pod Pod, n need) {
	for _, limit := range n.limits {
		m.log.WarnContext(ctx, limit, "namespace", pod.Namespace, "pod", pod.Name, "sandbox", pod.SandboxID)
	}
}

func changedMappings(old, next *mapped) []Mapping {
	if old == nil {
		return next.pod.Mappings
	}
	count := make(map[Mapping]int)
	for _, mapping := range slices.Concat(old.pod.Mappings, next.pod.Mappings) {
		count[mapping]++
	}
	same := slices.Equal(old.pod.IPs, next.pod.IPs)
	var changed []Mapping
	for mapping, n := range count {
		if n == 1 || !same {
			changed = append(changed, mapping)
		}
	}
	return changed
}
