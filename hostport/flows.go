package hostport

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// maxFilters is up to where deleting flows by filter is cheaper than listing them,
// which takes the locks of all of the kernel's buckets.
const maxFilters = 16

// flowChange says whose flows are to be deleted.
type flowChange struct {
	mappings []Mapping
	// pod has the addresses that the mappings lead, or led, to.
	pod Pod
	// gone is set if the pod loses all of the mappings: then its flows are those
	// that lead to it. Else they are all that began at the ports.
	gone bool
}

// concerns reports whether the mapping is, or was, in the kernel for the family.
func (c flowChange) concerns(f family, m Mapping) bool {
	return f.addrOf(c.pod).IsValid() && (!m.HostIP.IsValid() || f.Has(m.HostIP))
}

// endFlows deletes the entries of connection tracking for UDP and SCTP that
// began at one of the ports of an address of this node. Their next packets go by
// the rules. TCP does not need it: a new connection begins with a SYN. It must be
// called after the rules are in place, or packets in between would bring the old
// entries back.
func (m *Manager) endFlows(ctx context.Context, c flowChange) error {
	all := c.mappings
	c.mappings = nil
	for _, mapping := range all {
		if mapping.Protocol != TCP {
			c.mappings = append(c.mappings, mapping)
		}
	}
	if len(c.mappings) == 0 {
		return nil
	}
	locals := &localAddresses{host: m.host, known: make(map[netip.Addr]bool)}
	// Flows to Services were never ours.
	protected, err := m.host.AddressesOn(m.protected)
	if err != nil {
		return fmt.Errorf("end flows in connection tracking: %w", err)
	}
	for _, addr := range protected {
		locals.known[addr] = false
	}
	for _, f := range families() {
		if err := m.endFlowsIn(f, c, locals); err != nil && !m.noFlows(ctx, err) {
			return fmt.Errorf("end flows in connection tracking: %w", err)
		}
	}
	return nil
}

// endFlowsIn deletes the flows of a family in the cheapest way that is exact.
func (m *Manager) endFlowsIn(f family, c flowChange, locals *localAddresses) error {
	if f.Any.Is4() { // see kernel.DeleteFlows
		filters, err := c.filters(f, locals)
		if err != nil {
			return err
		}
		if len(filters) <= maxFilters && m.host.DeleteFlows(filters) == nil {
			return nil
		}
		// There are too many, or the kernel does not know filters. Listing works
		// everywhere, and fails where something else is wrong.
	}
	byPort := make(map[portKey][]Mapping)
	for _, mapping := range c.mappings {
		byPort[keyOf(mapping)] = append(byPort[keyOf(mapping)], mapping)
	}
	for p, port := range portsByProtocol(c.mappings, func(m Mapping) bool { return c.concerns(f, m) }) {
		query := kernel.FlowQuery{Family: f.Number, Protocol: p.number(), Port: port}
		err := m.host.DeleteFlowsIf(query, func(flow kernel.Flow) (bool, error) {
			if !covered(byPort[portKey{p, flow.Port}], flow.Dst) {
				return false, nil
			}
			return locals.has(flow.Dst)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// filters describe the flows of the change, with one filter or more for each
// mapping. When there are more than are of use, it stops.
func (c flowChange) filters(f family, locals *localAddresses) ([]kernel.FlowFilter, error) {
	var filters []kernel.FlowFilter
	for _, m := range c.mappings {
		if !c.concerns(f, m) {
			continue
		}
		original := kernel.Tuple{Protocol: m.Protocol.number(), DstPort: m.HostPort}
		if c.gone {
			reply := kernel.Tuple{Protocol: m.Protocol.number(), Src: f.addrOf(c.pod), SrcPort: m.ContainerPort}
			filters = append(filters, kernel.FlowFilter{Family: f.Number, Original: &original, Reply: &reply})
		} else {
			hosts, err := locals.of(f, m)
			if err != nil {
				return nil, err
			}
			for _, host := range hosts {
				to := original
				to.Dst = host
				filters = append(filters, kernel.FlowFilter{Family: f.Number, Original: &to})
			}
		}
		if len(filters) > maxFilters {
			break
		}
	}
	return filters, nil
}

func covered(mappings []Mapping, dst netip.Addr) bool {
	for _, m := range mappings {
		if overlap(m.HostIP, dst) {
			return true
		}
	}
	return false
}

// localAddresses caches which addresses are the node's, and may be translated.
type localAddresses struct {
	host  host
	known map[netip.Addr]bool
	all   []netip.Addr
}

func (l *localAddresses) has(addr netip.Addr) (bool, error) {
	local, ok := l.known[addr]
	if ok {
		return local, nil
	}
	local, err := l.host.IsLocal(addr)
	if err == nil {
		l.known[addr] = local
	}
	return local, err
}

// of lists the node's addresses of the family that the mapping is for.
func (l *localAddresses) of(f family, m Mapping) ([]netip.Addr, error) {
	if m.HostIP.IsValid() && !m.HostIP.IsUnspecified() {
		local, err := l.has(m.HostIP)
		if err != nil || !local {
			return nil, err
		}
		return []netip.Addr{m.HostIP}, nil
	}
	if l.all == nil {
		all, err := l.host.Addresses()
		if err != nil {
			return nil, err
		}
		l.all = all
	}
	var ours []netip.Addr
	for _, addr := range l.all {
		if local, ok := l.known[addr]; f.Has(addr) && (local || !ok) {
			ours = append(ours, addr)
		}
	}
	return ours, nil
}
