package inspect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// interfaces looks at the sandbox's interfaces.
func (i *inspection) interfaces(context.Context) error {
	i.links = make(map[string]netlink.Link)
	for _, name := range i.want.inner {
		link, err := i.pod.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			i.check(PartInterface, name, "none of that name in the sandbox", remake)
			continue
		}
		if err != nil {
			return fmt.Errorf("interface %s of the sandbox: %w", name, err)
		}
		have := ""
		if link.Attrs().Flags&net.FlagUp == 0 {
			have = name + ", which is down"
		}
		if i.check(PartInterface, name+", which is up", have, i.inside("link set %s up", name)+orRemake) {
			i.links[name] = link
		} else {
			i.fixable(FixLink, func() error { return i.pod.LinkSetUp(link) })
		}
	}
	return nil
}

// addresses looks at the sandbox's addresses.
func (i *inspection) addresses(context.Context) error {
	if len(i.links) < len(i.want.inner) {
		return nil // what is gone with an interface is not told twice
	}
	addresses, err := listed(func() ([]netlink.Addr, error) { return i.pod.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the sandbox's addresses: %w", err)
	}
	for _, want := range i.want.addresses {
		link, on := i.links[want.link], want.link
		if link == nil {
			on = i.subject.Attachment.IfName
		}
		have := "it is not on " + on
		for _, a := range addresses {
			addr, _ := netip.AddrFromSlice(a.IP)
			if addr.Unmap() != want.prefix.Addr() || link != nil && a.LinkIndex != link.Attrs().Index {
				continue
			}
			have = ""
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				have = "it is, and another machine on the link has it as well (dadfailed)"
			}
			break
		}
		i.check(PartAddress, fmt.Sprintf("%s on %s", want.prefix, on), have,
			i.inside("address add %s dev %s", want.prefix, on)+orRemake)
		if link = i.links[on]; link != nil && have == "it is not on "+on {
			i.fixable(FixAddress, func() error { return addAddress(i.pod, link, want.prefix) })
		}
	}
	return nil
}

// routes looks at the sandbox's routes, in all tables: plugins such as sbr move them.
func (i *inspection) routes(context.Context) error {
	if len(i.want.routes) == 0 || len(i.links) < len(i.want.inner) {
		return nil
	}
	all, err := listed(func() ([]netlink.Route, error) {
		return i.pod.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list the sandbox's routes: %w", err)
	}
	for _, want := range i.want.routes {
		have := "none"
		for _, r := range all {
			if to, ok := destinationOf(r); !ok || to != want.to.Masked() || r.Type != unix.RTN_UNICAST {
				continue
			}
			if have = wrongGateway(want, r); have == "" {
				break
			}
		}
		what, via := want.to.String(), ""
		switch {
		case want.gateway.IsValid():
			what += " via " + want.gateway.String()
		case want.to.Bits() == 0:
			what += " (the default route)"
		}
		if want.via.IsValid() {
			via = " via " + want.via.String() // such as no shell minds
		}
		i.check(PartRoute, what, have, i.inside("route add %s"+via+" dev %s", want.to, i.subject.Attachment.IfName)+orRemake)
		if link := i.links[i.subject.Attachment.IfName]; link != nil && have == "none" {
			i.fixable(FixRoute, func() error { return addRoute(i.pod, link, want) })
		}
	}
	return nil
}

// destinationOf is where a route leads to; a default route may have none.
func destinationOf(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst != nil {
		return prefixOf(*r.Dst)
	}
	if r.Family == unix.AF_INET6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
}

// wrongGateway names the gateway of a route that should have another one.
func wrongGateway(want route, r netlink.Route) string {
	if !want.gateway.IsValid() || len(r.MultiPath) > 0 || r.Via != nil {
		return ""
	}
	if gateway, _ := netip.AddrFromSlice(r.Gw); gateway.Unmap() != want.gateway {
		return "one via " + gateway.Unmap().String()
	}
	return ""
}

// listed lists again if the list changed meanwhile.
func listed[T any](list func() ([]T, error)) (all []T, err error) {
	for range 3 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}
