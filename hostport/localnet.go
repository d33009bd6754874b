package hostport

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// interfaceUse is an interface over which pods are reached from 127.0.0.0/8.
type interfaceUse struct {
	pods int
	// ours is set if route_localnet was off there before us. Such interfaces are
	// elements of the set route_localnet, and are switched off when no pod is left.
	ours bool
}

// localnetPlan is what one exchange of pods does about route_localnet.
type localnetPlan struct {
	enter, leave string // interfaces with one pod more, one less
	// on and off become, or cease to be, elements of the set.
	on, off string
	// enable is switched on after the transaction.
	enable string
}

// ways is how the node reaches a pod.
type ways struct {
	// loopback is the interface on which the pod needs route_localnet, "" if none.
	loopback string
	// bridges are the Linux bridges that lead to the pod.
	bridges []string
}

// elements are what the ways need in the kernel.
func (w ways) elements() []element {
	elements := make([]element, 0, len(w.bridges))
	for _, name := range w.bridges {
		elements = append(elements, bridgeElement(name))
	}
	return elements
}

// waysTo finds out over which interfaces the pod's addresses are routed. Where
// route_localnet can't serve a mapping for 127.0.0.0/8, that is logged.
func (m *Manager) waysTo(ctx context.Context, r *rtnl, pod Pod) (ways, error) {
	var w ways
	for _, f := range families() {
		ip := f.addrOf(pod)
		if !ip.IsValid() {
			continue
		}
		l, why, err := r.podLink(ip)
		if err != nil {
			return ways{}, err
		}
		if l.kind == "bridge" && !slices.Contains(w.bridges, l.name) {
			w.bridges = append(w.bridges, l.name)
		}
		if !f.any.Is4() || !wantsLoopback(f, pod.Mappings) {
			continue
		}
		if why == "" && !leadsToPods(l.kind) {
			why = fmt.Sprintf("%s is reached over %s, which is not an interface for pods alone", ip, l.name)
		}
		if why == "" {
			w.loopback = l.name
			continue
		}
		m.log.WarnContext(ctx, "hostPorts don't answer on 127.0.0.1",
			"namespace", pod.Namespace, "pod", pod.Name, "sandbox", pod.SandboxID, "reason", why)
	}
	return w, nil
}

// podLink finds the interface behind which ip is, or else says why there is none.
func (r *rtnl) podLink(ip netip.Addr) (l link, why string, err error) {
	way, err := r.routeTo(ip)
	if err != nil && unroutable(err) {
		return link{}, err.Error(), nil
	}
	if err != nil {
		return link{}, "", err
	}
	if way.gateway || way.local {
		return link{}, fmt.Sprintf("%s is not on a link of this node", ip), nil
	}
	l, err = r.linkByIndex(way.oif)
	if errors.Is(err, unix.ENODEV) {
		return link{}, err.Error(), nil
	}
	return l, "", err
}

func wantsLoopback(f family, mappings []Mapping) bool {
	for _, m := range mappings {
		if !m.HostIP.IsValid() || m.HostIP == f.any || f.loopback.Contains(m.HostIP) {
			return true
		}
	}
	return false
}

// leadsToPods says whether interfaces of the kind lie between node and pods, and
// not between node and world.
func leadsToPods(kind string) bool {
	switch kind {
	case "bridge", "veth", "netkit", "tun", "openvswitch":
		return true
	}
	return false
}

func (m *Manager) planLocalnet(old, next *mapped) (localnetPlan, error) {
	var p localnetPlan
	if old != nil {
		p.leave = old.iface
	}
	if next != nil {
		p.enter = next.iface
	}
	if p.enter == p.leave {
		p.leave = ""
		if old != nil && next != nil {
			return p.enableIfOff(m, false)
		}
	}
	if use := m.localnet[p.leave]; use != nil && use.pods == 1 && use.ours {
		p.off = p.leave
	}
	return p.enableIfOff(m, true)
}

// enableIfOff finds out about the interface that is entered. It may be off though
// other pods use it: somebody else may have made it anew.
func (p localnetPlan) enableIfOff(m *Manager, enter bool) (localnetPlan, error) {
	name := p.enter
	if !enter {
		p.enter = ""
	}
	if name == "" {
		return p, nil
	}
	err := withRtnl(m.netns, func(r *rtnl) error {
		l, err := r.linkByName(name)
		if err == nil && !l.routeLocalnet {
			p.enable = name
		}
		return err
	})
	if errors.Is(err, unix.ENODEV) {
		return p, nil // gone in the meantime, and the pod with it
	}
	if use := m.localnet[name]; p.enable != "" && (use == nil || !use.ours) {
		p.on = name
	}
	return p, err
}

// commitLocalnet carries the plan out after its elements are in the kernel.
func (m *Manager) commitLocalnet(p localnetPlan) error {
	m.use(p)
	var on, off error
	if p.enable != "" {
		on = m.switchOn([]string{p.enable})
	}
	if p.off != "" {
		off = m.switchOff([]string{p.off})
	}
	return errors.Join(on, off)
}

// use counts the plan.
func (m *Manager) use(p localnetPlan) {
	if p.enter != "" {
		if m.localnet[p.enter] == nil {
			m.localnet[p.enter] = &interfaceUse{}
		}
		m.localnet[p.enter].pods++
	}
	if use := m.localnet[p.on]; use != nil {
		use.ours = true
	}
	if use := m.localnet[p.leave]; use != nil {
		use.pods--
		if use.pods == 0 {
			delete(m.localnet, p.leave)
		}
	}
}

func (m *Manager) switchOn(names []string) error  { return m.switchLocalnet(names, true) }
func (m *Manager) switchOff(names []string) error { return m.switchLocalnet(names, false) }

// switchLocalnet sets route_localnet on those of the interfaces that still exist.
func (m *Manager) switchLocalnet(names []string, on bool) error {
	if len(names) == 0 {
		return nil
	}
	return withRtnl(m.netns, func(r *rtnl) error {
		var wrong problems
		for _, name := range names {
			l, err := r.linkByName(name)
			if err == nil && l.routeLocalnet != on {
				err = r.setRouteLocalnet(l.index, on)
			}
			if err != nil && !errors.Is(err, unix.ENODEV) {
				wrong.add(fmt.Errorf("set net.ipv4.conf.%s.route_localnet: %w", name, err))
			}
		}
		return wrong.err()
	})
}

// claimSwitchedOff lists the interfaces in use on which route_localnet is off, and
// takes them for ours in memory.
func (m *Manager) claimSwitchedOff() ([]string, error) {
	if len(m.localnet) == 0 {
		return nil, nil
	}
	var names []string
	err := withRtnl(m.netns, func(r *rtnl) error {
		links, err := r.allLinks()
		if err != nil {
			return fmt.Errorf("list the interfaces: %w", err)
		}
		for _, l := range links {
			use := m.localnet[l.name]
			if use == nil || l.routeLocalnet {
				continue
			}
			names = append(names, l.name)
			if !use.ours {
				use.ours = true
				m.keepInterface(l.name)
			}
		}
		return nil
	})
	return names, err
}

// keepInterface makes the interface an element of the set.
func (m *Manager) keepInterface(name string) {
	e := ifnameElement(name)
	m.elems[e.elemKey] = counted{e, 1}
}

// dropIdleInterfaces forgets interfaces that no pod uses, and returns their names.
func (m *Manager) dropIdleInterfaces() []string {
	var idle []string
	for name, use := range m.localnet {
		if use.pods == 0 {
			idle = append(idle, name)
			delete(m.localnet, name)
			delete(m.elems, ifnameElement(name).elemKey)
		}
	}
	return idle
}

// ifnameIn is the inverse of ifnameElement.
func ifnameIn(key string) string {
	name, _, _ := strings.Cut(key, "\x00")
	return name
}
