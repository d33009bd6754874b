package hostport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Map maps the pod's ports, in one transaction; if it fails nothing is mapped.
// Ports that a reservation of the same pod (namespace, name, UID) holds become
// the sandbox's. Mapping a sandbox again changes what differs and keeps the rest.
// Afterwards connection tracking forgets the UDP and SCTP flows that came to the
// ports before; should that fail, the mapping stands, and the error says so.
func (m *Manager) Map(ctx context.Context, pod Pod) error {
	if pod.SandboxID == "" {
		return fmt.Errorf("map the hostPorts of %s: it has no sandbox ID", pod)
	}
	if len(pod.Mappings) == 0 {
		return m.Unmap(ctx, pod.SandboxID)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("map the hostPorts of %s: %w", pod, err)
	}
	changed, err := m.mapPod(ctx, pod)
	if err != nil {
		return fmt.Errorf("map the hostPorts of %s: %w", pod, err)
	}
	if err := m.flows.forget(flowChange{mappings: changed, pod: pod}); err != nil {
		return fmt.Errorf("the hostPorts of %s are mapped, but older flows were not ended: %w", pod, err)
	}
	return nil
}

// mapPod returns the mappings that were not there before, or are no more.
func (m *Manager) mapPod(ctx context.Context, pod Pod) ([]Mapping, error) {
	var way ways
	err := withRtnl(m.netns, func(r *rtnl) (err error) {
		way, err = m.waysTo(ctx, r, pod)
		return err
	})
	if err != nil {
		return nil, err
	}
	next, err := prepare(pod, way)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.managing { // after trouble, though, a try is worth it
		return nil, m.available()
	}
	own := func(o *owner) bool {
		return o.identity == next.owner.identity && (o.sandbox == "" || o.sandbox == pod.SandboxID)
	}
	if err := m.claims.check(pod.Mappings, own); err != nil {
		return nil, err
	}
	old := m.pods[pod.SandboxID]
	if err := m.exchange(ctx, old, next); err != nil {
		return nil, err
	}
	return changedMappings(old, next), nil
}

// prepare works out what the pod needs.
func prepare(pod Pod, way ways) (*mapped, error) {
	elements, err := elementsOf(pod)
	if err != nil {
		return nil, err
	}
	return &mapped{
		owner:    &owner{identity: pod.identity(), sandbox: pod.SandboxID, mappings: pod.Mappings},
		pod:      pod,
		elements: append(elements, way.elements()...),
		iface:    way.loopback,
	}, nil
}

func changedMappings(old, next *mapped) []Mapping {
	if old == nil {
		return next.pod.Mappings
	}
	count := make(map[Mapping]int)
	for _, list := range [][]Mapping{old.pod.Mappings, next.pod.Mappings} {
		for _, mapping := range list {
			count[mapping]++
		}
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

// Unmap takes the mappings of a sandbox away, in one transaction, and ends the
// UDP and SCTP flows that came through them. A sandbox that has none is no error.
// If it fails, the mappings are still the sandbox's, and it is to be called again;
// only flows that could not be ended are not remembered.
func (m *Manager) Unmap(ctx context.Context, sandboxID string) error {
	m.mu.Lock()
	old := m.pods[sandboxID]
	var err error
	if old != nil {
		err = m.exchange(ctx, old, nil)
	}
	m.mu.Unlock()
	if old == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmap the hostPorts of %s: %w", old.owner, err)
	}
	if err := m.flows.forget(flowChange{old.pod.Mappings, old.pod, true}); err != nil {
		return fmt.Errorf("the hostPorts of %s are unmapped, but their flows were not ended: %w", old.owner, err)
	}
	return nil
}

// exchange puts next in the place of old, in the kernel and then in memory. Either
// may be nil. When it fails memory is as before; the kernel then is as before too,
// or is made so by the next check.
func (m *Manager) exchange(ctx context.Context, old, next *mapped) error {
	localnet, err := m.planLocalnet(old, next)
	if err != nil {
		return err
	}
	touched := m.plan(old, next, localnet)
	if err := m.apply(ctx, touched); err != nil {
		return err
	}
	m.remember(touched)
	if old != nil {
		m.claims.release(old.owner)
		delete(m.pods, old.owner.sandbox)
	}
	if next != nil {
		m.takeOver(next.owner)
		m.claims.add(next.owner)
		m.pods[next.owner.sandbox] = next
	}
	return m.commitLocalnet(localnet)
}

// takeOver ends the reservations that o comes out of.
func (m *Manager) takeOver(o *owner) {
	for reserved := range m.inFlight {
		if reserved.identity == o.identity {
			m.unreserve(reserved)
		}
	}
}

// plan counts what is needed after the exchange, for the elements it touches.
func (m *Manager) plan(old, next *mapped, l localnetPlan) map[elemKey]counted {
	touched := make(map[elemKey]counted)
	get := func(k elemKey) counted {
		if c, ok := touched[k]; ok {
			return c
		}
		return m.elems[k]
	}
	drop := func(e element) {
		c := get(e.elemKey)
		c.uses--
		touched[e.elemKey] = c
	}
	need := func(e element) {
		c := get(e.elemKey)
		if c.uses == 0 {
			c.element = e
		}
		c.uses++
		touched[e.elemKey] = c
	}
	if old != nil {
		for _, e := range old.elements {
			drop(e)
		}
	}
	if next != nil {
		for _, e := range next.elements {
			need(e)
		}
	}
	if l.off != "" {
		drop(ifnameElement(l.off))
	}
	if l.on != "" {
		need(ifnameElement(l.on))
	}
	return touched
}

// apply makes the kernel what memory will be.
func (m *Manager) apply(ctx context.Context, touched map[elemKey]counted) error {
	var u update
	for key, after := range touched {
		before := m.elems[key]
		if before.uses > 0 && (after.uses == 0 || after.element != before.element) {
			u.remove = append(u.remove, before.element)
		}
		if after.uses > 0 && (before.uses == 0 || after.element != before.element) {
			u.add = append(u.add, after.element)
		}
	}
	if u.empty() {
		return nil
	}
	first := m.nft.change(u)
	if first == nil {
		m.trouble = nil
		return nil
	}
	// The table is not what it was thought to be: somebody else was at it, or the
	// kernel failed. Compare, and put all of it right in one go.
	_, done, err := m.nft.reconcile(m.overlaid(touched))
	if err != nil {
		m.raise("a transaction failed")
		return errors.Join(first, err)
	}
	m.trouble = nil
	m.forgetChanged(ctx, done)
	m.heal(ctx, "a transaction found another table than it should have: "+first.Error())
	return nil
}

// overlaid is memory with the touched elements laid over it.
func (m *Manager) overlaid(touched map[elemKey]counted) map[elemKey]counted {
	wanted := maps.Clone(m.elems)
	for key, c := range touched {
		if c.uses > 0 {
			wanted[key] = c
		} else {
			delete(wanted, key)
		}
	}
	return wanted
}

func (m *Manager) remember(touched map[elemKey]counted) {
	for key, c := range touched {
		if c.uses > 0 {
			m.elems[key] = c
		} else {
			delete(m.elems, key)
		}
	}
}
