package hostport

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// Reservation holds the ports of a pod that has no sandbox yet.
type Reservation struct {
	manager *Manager
	owner   *owner
}

// Reserve admits a pod: it fails if hostPorts cannot be mapped (ErrUnavailable), or
// if one of the pod's is held by another pod, mapped or in flight, or by a
// process of the host (*ConflictError). The pod needs no sandbox ID and no
// addresses yet. The ports are the pod's until Map takes them over for the same
// namespace, name and UID, or until Release. A pod without mappings is always
// admitted.
func (m *Manager) Reserve(ctx context.Context, pod Pod) (*Reservation, error) {
	if len(pod.Mappings) == 0 {
		return &Reservation{}, nil
	}
	o := &owner{identity: pod.identity(), mappings: pod.Mappings}
	if err := m.claim(o); err != nil {
		return nil, fmt.Errorf("reserve the hostPorts of %s: %w", pod, err)
	}
	r := &Reservation{manager: m, owner: o}
	if err := m.checkListeners(ctx, pod); err != nil {
		r.Release()
		return nil, fmt.Errorf("reserve the hostPorts of %s: %w", pod, err)
	}
	return r, nil
}

func (m *Manager) claim(o *owner) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.available(); err != nil {
		return err
	}
	if err := m.claims.check(o.mappings, func(*owner) bool { return false }); err != nil {
		return err
	}
	if err := m.checkNodePorts(o.mappings); err != nil {
		return err
	}
	m.claims.add(o)
	m.inFlight[o] = struct{}{}
	return nil
}

// Release gives back what Map has not taken over. It may be called at any time,
// and again.
func (r *Reservation) Release() {
	if r.manager == nil {
		return
	}
	r.manager.mu.Lock()
	defer r.manager.mu.Unlock()
	r.manager.unreserve(r.owner)
}

func (m *Manager) unreserve(o *owner) {
	if _, ok := m.inFlight[o]; ok {
		m.claims.release(o)
		delete(m.inFlight, o)
	}
}

// takeOver ends the reservations of the pod that o is now the owner of.
func (m *Manager) takeOver(o *owner) {
	for reserved := range m.inFlight {
		if reserved.identity == o.identity {
			m.unreserve(reserved)
		}
	}
}

// checkListeners applies the conflict mode to processes that listen on the ports.
func (m *Manager) checkListeners(ctx context.Context, pod Pod) error {
	conflicts, err := m.findListeners(ctx, pod.Mappings)
	if err != nil {
		return fmt.Errorf("list listening sockets: %w", err)
	}
	if m.mode == Refuse {
		var all problems
		for _, c := range conflicts {
			all.add(c)
		}
		return all.err()
	}
	for _, c := range conflicts {
		m.log.WarnContext(ctx, "a host process loses a port to a pod",
			"namespace", pod.Namespace, "pod", pod.Name, "hostPort", c.Mapping.String(), "holder", c.Holder)
	}
	return nil
}

// findListeners returns a conflict for each mapping that a host process listens
// on, with one process for each. Sockets are listed, none is opened to try.
func (m *Manager) findListeners(ctx context.Context, mappings []Mapping) ([]*ConflictError, error) {
	found, err := m.listenersOn(ctx, mappings)
	if err != nil {
		return nil, err
	}
	var conflicts []*ConflictError
	var holders []kernel.Listener
	for _, mapping := range mappings {
		for _, l := range found[keyOf(mapping)] {
			if takesFrom(mapping, l) {
				conflicts = append(conflicts, &ConflictError{Mapping: mapping, Process: true})
				holders = append(holders, l)
				break
			}
		}
	}
	if len(conflicts) == 0 {
		return nil, nil
	}
	names, err := m.host.Holders(ctx, holders)
	if err != nil {
		return nil, err
	}
	for i, c := range conflicts {
		c.Holder = names[holders[i].Inode]
	}
	return conflicts, nil
}

// takesFrom reports whether the mapping takes away what the listener would get. One
// on ::1 loses nothing to a mapping for all addresses: what is sent from ::1 to ::1
// is not translated.
func takesFrom(m Mapping, l kernel.Listener) bool {
	if l.Addr.IsMulticast() || l.Port == 0 || l.Addr == netip.IPv6Loopback() && m.HostIP != l.Addr {
		return false
	}
	return overlap(m.HostIP, l.Addr)
}

// listenersOn lists the sockets that listen on the ports. Protocols that the kernel
// does not list are left out, and reported.
func (m *Manager) listenersOn(ctx context.Context, mappings []Mapping) (map[portKey][]kernel.Listener, error) {
	found := make(map[portKey][]kernel.Listener)
	for p, port := range portsByProtocol(mappings, func(Mapping) bool { return true }) {
		for _, f := range families() {
			sockets, err := m.host.Listeners(f.Number, p.number(), port)
			if errors.Is(err, kernel.ErrNoListeners) {
				m.noListeners(ctx, p, err)
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			for _, l := range sockets {
				found[portKey{p, l.Port}] = append(found[portKey{p, l.Port}], l)
			}
		}
	}
	return found, nil
}

// portsByProtocol returns, for each protocol of the mappings that are of interest,
// the port if there is just one, and 0 for several.
func portsByProtocol(mappings []Mapping, of func(Mapping) bool) map[Protocol]uint16 {
	ports := make(map[Protocol]uint16)
	for _, m := range mappings {
		if !of(m) {
			continue
		}
		if port, ok := ports[m.Protocol]; ok && port != m.HostPort {
			ports[m.Protocol] = 0
		} else {
			ports[m.Protocol] = m.HostPort
		}
	}
	return ports
}
