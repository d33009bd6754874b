package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// maxNodeAddrs bounds how many of the node's addresses are tried.
const maxNodeAddrs = 8

// handle opens netlink in the namespace.
func (s *Space) handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(s.fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// links lists the interfaces of the namespace.
func links(h *netlink.Handle) (all []netlink.Link, err error) {
	for range 10 { // it changes while it is read, when many pods go
		if all, err = h.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// familyOf is netlink's name of an address's family.
func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// addresses returns the namespace's own addresses that others can send to, of the
// families given, those of the default routes' interfaces first.
func (s *Space) addresses(families map[int]bool) ([]netip.Addr, error) {
	h, err := s.handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	all, err := links(h)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var first, rest []netip.Addr
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if !families[family] {
			continue
		}
		uplink, _ := defaultRoute(h, family)
		for _, link := range all {
			attrs := link.Attrs()
			if attrs.Flags&net.FlagLoopback != 0 || attrs.Flags&net.FlagUp == 0 || attrs.Name == "kube-ipvs0" {
				continue // the addresses of Services are no node's
			}
			list, err := h.AddrList(link, family)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
				return nil, fmt.Errorf("list addresses: %w", err)
			}
			for _, a := range list {
				addr, ok := netip.AddrFromSlice(a.IP)
				if addr = addr.Unmap(); !ok || !addr.IsGlobalUnicast() || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
					continue
				}
				if uplink != nil && uplink.LinkIndex == attrs.Index {
					first = append(first, addr)
				} else {
					rest = append(rest, addr)
				}
			}
		}
	}
	both := append(first, rest...)
	return both[:min(len(both), maxNodeAddrs)], nil
}

// defaultRoute is the default route of a family, nil if there is none. One through a
// gateway goes before others.
func defaultRoute(h *netlink.Handle, family int) (*netlink.Route, error) {
	routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	for _, r := range routes {
		if ones := 0; r.Dst != nil {
			if ones, _ = r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if len(r.MultiPath) > 0 {
			r.LinkIndex, r.Gw = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw
		}
		return &r, nil
	}
	return nil, nil
}

// gateway is the default gateway of an address's family, with the name of the
// interface to it; the zero Addr if there is none.
func (s *Space) gateway(family int) (gw netip.Addr, link string) {
	h, err := s.handle()
	if err != nil {
		return netip.Addr{}, ""
	}
	defer h.Close()
	route, err := defaultRoute(h, family)
	if err != nil || route == nil {
		return netip.Addr{}, ""
	}
	gw, _ = netip.AddrFromSlice(route.Gw)
	gw = gw.Unmap()
	l, err := h.LinkByIndex(route.LinkIndex)
	if err != nil {
		return gw, ""
	}
	if gw.IsLinkLocalUnicast() && gw.Is6() {
		gw = gw.WithZone(l.Attrs().Name)
	}
	return gw, l.Attrs().Name
}

// chain are the interfaces that a pod hangs on: its own, the host's end, and the
// bridge of that.
type chain struct{ pod, host, bridge netlink.Link }

// chainOf finds a pod's interfaces. What it does not find stays nil.
func chainOf(pod, node *Space, ifName string) (c chain) {
	inside, err := pod.handle()
	if err != nil {
		return c
	}
	defer inside.Close()
	if c.pod, err = inside.LinkByName(ifName); err != nil {
		return chain{}
	}
	outside, err := node.handle()
	if err != nil || c.pod.Type() != "veth" {
		return c
	}
	defer outside.Close()
	host, err := outside.LinkByIndex(c.pod.Attrs().ParentIndex)
	if err != nil || host.Type() != "veth" {
		return c
	}
	c.host = host
	if master := c.host.Attrs().MasterIndex; master != 0 {
		if bridge, err := outside.LinkByIndex(master); err == nil {
			c.bridge = bridge
		}
	}
	return c
}

// mtu is the MTU of the pod's interface, 0 if it is not known.
func (c chain) mtu() int {
	if c.pod == nil {
		return 0
	}
	return c.pod.Attrs().MTU
}

// way is the node's interface towards the pod; empty if it is not known.
func (c chain) way() string {
	switch {
	case c.bridge != nil:
		return Plain(c.bridge.Attrs().Name)
	case c.host != nil:
		return Plain(c.host.Attrs().Name)
	default:
		return ""
	}
}

// hairpin says whether the pod's bridge port gives frames back to it; ok is false
// where there is no bridge port.
func (c chain) hairpin(node *Space) (on, ok bool) {
	if c.bridge == nil || c.bridge.Type() != "bridge" {
		return false, false
	}
	h, err := node.handle()
	if err != nil {
		return false, false
	}
	defer h.Close()
	info, err := h.LinkGetProtinfo(c.host)
	return info.Hairpin || c.bridge.Attrs().Promisc != 0, err == nil
}

// sysctl reads a setting of the namespace, such as net/ipv4/ip_forward; empty if
// there is none.
func (s *Space) sysctl(name string) string {
	var value string
	_ = s.Do(func() error { // what cannot be read is empty
		data, err := os.ReadFile(filepath.Join("/proc/sys", name))
		value = strings.TrimSpace(string(data))
		return err
	})
	return value
}

// counter reads one of the namespace's counters of IP, such as IPReversePathFilter.
func (s *Space) counter(name string) (n int64) {
	_ = s.Do(func() error { // what cannot be read is 0
		data, err := os.ReadFile("/proc/thread-self/net/netstat")
		var header []string
		for line := range strings.Lines(string(data)) {
			fields := strings.Fields(line)
			if i := slices.Index(header, name); i > 0 && i < len(fields) && fields[0] == header[0] {
				n, _ = strconv.ParseInt(fields[i], 10, 64)
				return nil
			}
			header = fields
		}
		return err
	})
	return n
}

// legacyTables says whether rules of iptables-legacy are loaded, which nftables does
// not trace.
func (s *Space) legacyTables() (tables []string) {
	_ = s.Do(func() error { // a kernel without them has no such file
		for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
			data, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err == nil && len(strings.Fields(string(data))) > 0 {
				tables = append(tables, strings.TrimSuffix(file, "_names"))
			}
		}
		return nil
	})
	return tables
}

// neighbour is the state of the entry for an address among the namespace's
// neighbours; empty if there is none.
func (s *Space) neighbour(addr netip.Addr) string {
	h, err := s.handle()
	if err != nil {
		return ""
	}
	defer h.Close()
	list, err := h.NeighList(0, familyOf(addr))
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return ""
	}
	for _, n := range list {
		if at, ok := netip.AddrFromSlice(n.IP); !ok || at.Unmap() != addr.WithZone("") {
			continue
		}
		switch {
		case n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0:
			return "failed"
		case n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE|netlink.NUD_PERMANENT) != 0:
			return "known"
		}
	}
	return ""
}

// route is the way from the namespace to an address: the interface and the gateway.
func (s *Space) route(to netip.Addr) (link string, via netip.Addr, err error) {
	h, err := s.handle()
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer h.Close()
	routes, err := h.RouteGet(to.AsSlice())
	if err != nil {
		return "", netip.Addr{}, err
	}
	if len(routes) == 0 {
		return "", netip.Addr{}, unix.ENETUNREACH
	}
	if l, err := h.LinkByIndex(routes[0].LinkIndex); err == nil {
		link = l.Attrs().Name
	}
	via, _ = netip.AddrFromSlice(routes[0].Gw)
	return link, via.Unmap(), nil
}

// tentative are the IPv6 addresses of an interface whose uniqueness the kernel still
// checks (RFC 4862): it does not answer for them yet.
func (s *Space) tentative(link netlink.Link) (addrs []string) {
	h, err := s.handle()
	if err != nil {
		return nil
	}
	defer h.Close()
	list, err := h.AddrList(link, netlink.FAMILY_V6)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil
	}
	for _, a := range list {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&(unix.IFA_F_OPTIMISTIC|unix.IFA_F_DADFAILED) == 0 {
			addrs = append(addrs, a.IP.String())
		}
	}
	return addrs
}
