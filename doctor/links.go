package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// links are the node's interfaces, addresses, routes and rules.
type links struct {
	all    []netlink.Link
	byID   map[int]netlink.Link
	addrs  []netlink.Addr
	routes []netlink.Route
	rules  []netlink.Rule
}

// netlinkHandle opens netlink in the node's network namespace.
func (n *Node) netlinkHandle() (*netlink.Handle, error) {
	if n.NetNS != 0 {
		return netlink.NewHandleAt(netns.NsHandle(n.NetNS), unix.NETLINK_ROUTE)
	}
	return netlink.NewHandle(unix.NETLINK_ROUTE)
}

// askLinks returns the node's links.
func (n *Node) askLinks(ctx context.Context) (*links, error) {
	if !n.Live {
		return nil, errNotLive
	}
	return n.links.get(ctx, func(context.Context) (*links, error) { return n.readLinks() })
}

// readLinks asks the kernel.
func (n *Node) readLinks() (*links, error) {
	h, err := n.netlinkHandle()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	l := &links{byID: make(map[int]netlink.Link)}
	if l.all, err = h.LinkList(); err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, link := range l.all {
		l.byID[link.Attrs().Index] = link
	}
	if l.addrs, err = h.AddrList(nil, netlink.FAMILY_ALL); err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	if l.routes, err = h.RouteList(nil, netlink.FAMILY_ALL); err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	if l.rules, err = h.RuleList(netlink.FAMILY_V4); err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return l, nil
}

// named returns a link; nil if there is none of that name.
func (l *links) named(name string) netlink.Link {
	for _, link := range l.all {
		if link.Attrs().Name == name {
			return link
		}
	}
	return nil
}

// name is the name of a link's index.
func (l *links) name(index int) string {
	if link := l.byID[index]; link != nil {
		return link.Attrs().Name
	}
	return fmt.Sprintf("interface %d", index)
}

// isDefault says whether a route is a default route.
func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// uplinks are the links of default routes, each once.
func (l *links) uplinks() []netlink.Link {
	var ids []int
	for _, r := range l.routes {
		if !isDefault(r) || r.Type != unix.RTN_UNICAST {
			continue
		}
		if r.LinkIndex != 0 {
			ids = append(ids, r.LinkIndex)
		}
		for _, hop := range r.MultiPath {
			ids = append(ids, hop.LinkIndex)
		}
	}
	slices.Sort(ids)
	var all []netlink.Link
	for _, id := range slices.Compact(ids) {
		if link := l.byID[id]; link != nil {
			all = append(all, link)
		}
	}
	return all
}

// ports are the links at a bridge.
func (l *links) ports(bridge netlink.Link) []netlink.Link {
	var all []netlink.Link
	for _, link := range l.all {
		if link.Attrs().MasterIndex == bridge.Attrs().Index {
			all = append(all, link)
		}
	}
	return all
}

// tunnels are the links that put packets into packets. What they take from the MTU
// depends on their kind.
func (l *links) tunnels() []netlink.Link {
	kinds := []string{"vxlan", "geneve", "gre", "ipip", "sit", "wireguard", "gretap", "ip6tnl"}
	return slices.DeleteFunc(slices.Clone(l.all), func(link netlink.Link) bool {
		up := link.Attrs().OperState != netlink.OperDown && link.Attrs().Flags&unix.IFF_UP != 0
		return !up || !slices.Contains(kinds, link.Type())
	})
}

// prefix is an address or a destination as netip has it.
func prefix(ip []byte, mask []byte) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}, false
	}
	ones := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	if addr.Is4In6() && len(mask) == 4 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones), true
}
