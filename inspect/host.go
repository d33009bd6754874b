package inspect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// hostEnds finds the other ends of the sandbox's veths, where they are in the node's
// own namespace, and looks at them.
func (i *inspection) hostEnds(context.Context) error {
	for _, name := range i.want.inner {
		inner := i.links[name]
		if inner == nil || inner.Type() != "veth" {
			continue
		}
		outer, err := i.host.LinkByIndex(inner.Attrs().ParentIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // it is in some third namespace
		}
		if err != nil {
			return fmt.Errorf("the host's end of %s: %w", name, err)
		}
		// An index says nothing of the namespace: each must be the other's peer.
		if outer.Type() != "veth" || outer.Attrs().ParentIndex != inner.Attrs().Index {
			continue
		}
		i.ends = append(i.ends, end{inner, outer})
		have, host := "", outer.Attrs().Name
		if outer.Attrs().Flags&net.FlagUp == 0 {
			have = host + ", which is down"
		}
		i.check(PartHostEnd, host+", which is up", have, outside("ip link set %s up", host))
		i.fixable(FixHostEnd, func() error { return i.host.LinkSetUp(outer) })
	}
	return nil
}

// inHost looks at the interfaces on the node that the result names: each is there,
// bridges are up, and the veths among them are the bridge's ports.
func (i *inspection) inHost(ctx context.Context) error {
	var bridge netlink.Link
	for _, name := range i.want.outer {
		link, err := i.node.linkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			if i.netnsThere() {
				i.check(PartHostEnd, name+" on the node", "none of that name", remake)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("interface %s of the node: %w", name, err)
		}
		if link.Type() != "bridge" {
			continue
		}
		bridge = link
		have := ""
		if link.Attrs().Flags&net.FlagUp == 0 {
			have = name + ", which is down"
		}
		i.check(PartBridge, name+", which is up", have, outside("ip link set %s up", name))
		i.fixable(FixBridge, func() error { return i.host.LinkSetUp(link) })
	}
	if err := i.ports(bridge); err != nil {
		return err
	}
	if err := i.gateway(bridge); err != nil {
		return err
	}
	return i.way(ctx)
}

func (i *inspection) netnsThere() bool { return i.pod != nil }

// ports looks at the host's ends as ports of a bridge: the one that the result names,
// or else whichever they are on.
func (i *inspection) ports(bridge netlink.Link) error {
	for _, e := range i.ends {
		at := e.outer.Attrs()
		if bridge != nil && slices.Contains(i.want.outer, at.Name) {
			have := ""
			if at.MasterIndex != bridge.Attrs().Index {
				have = "no port of it"
			}
			name := bridge.Attrs().Name
			if !i.check(PartHostEnd, at.Name+" as a port of "+name, have, outside("ip link set %s master %s", at.Name, name)) {
				i.fixable(FixPort, func() error { return i.plugIn(e.outer, bridge) })
				continue
			}
		}
		if at.MasterIndex == 0 || !i.subject.Hairpin && !i.want.hairpin {
			continue
		}
		if err := i.hairpin(e.outer); err != nil {
			return err
		}
	}
	return nil
}

// hairpin looks at the hairpin mode of a port. That of a promiscuous bridge has none.
func (i *inspection) hairpin(port netlink.Link) error {
	name := port.Attrs().Name
	master, err := i.node.linkByIndex(port.Attrs().MasterIndex)
	if err != nil || master.Type() != "bridge" || master.Attrs().Promisc != 0 && !i.want.hairpin {
		return nil
	}
	info, err := kernel.LinkByIndex(0, port.Attrs().Index)
	if err != nil {
		return fmt.Errorf("bridge port %s: %w", name, err)
	}
	have := ""
	if !info.Hairpin {
		have = "off: the pod cannot reach itself through its hostPorts and Services"
	}
	i.check(PartHostEnd, "hairpin mode of "+name, have, outside("bridge link set dev %s hairpin on", name))
	i.fixable(FixHairpin, func() error { return i.host.LinkSetHairpin(port, true) })
	return nil
}

// gateway looks whether the node has the gateway's addresses.
func (i *inspection) gateway(bridge netlink.Link) error {
	if len(i.want.gateways) == 0 {
		return nil
	}
	on := bridge
	if on == nil && len(i.ends) > 0 {
		on = i.ends[0].outer
	}
	if on == nil {
		return nil // it went with its interface
	}
	// Any interface will do: some setups have the address on another one.
	all, err := i.node.allAddresses()
	if err != nil {
		return err
	}
	for n, want := range i.want.gateways {
		there := slices.ContainsFunc(all, func(a netlink.Addr) bool {
			addr, _ := netip.AddrFromSlice(a.IP)
			return addr.Unmap() == want
		})
		have := "no interface of the node has it"
		if there {
			have = ""
		}
		name, prefix := on.Attrs().Name, want.String()
		if bridge != nil && n < len(i.want.addresses) {
			prefix = netip.PrefixFrom(want, i.want.addresses[n].prefix.Bits()).String()
		}
		i.check(PartBridge, fmt.Sprintf("the gateway's address %s on %s", want, name), have, outside("ip address add %s dev %s", prefix, name))
		if bridge == nil {
			prefix = netip.PrefixFrom(want, want.BitLen()).String()
		}
		i.fixable(FixGateway, func() error {
			parsed, err := netip.ParsePrefix(prefix)
			if err != nil {
				return err
			}
			return addAddress(i.host, on, parsed)
		})
	}
	return nil
}

// way looks whether the node's routes lead to the pod by the host's end, or by the
// bridge that it is a port of.
func (i *inspection) way(context.Context) error {
	if !i.want.routed || len(i.ends) != 1 {
		return nil
	}
	device, known := i.routedBy()
	if !known {
		return nil
	}
	for _, want := range i.want.addresses {
		// Where a part is missing already, the way is missing with it.
		if slices.ContainsFunc(i.findings, func(f Finding) bool { return !f.OK && f.Part != PartRoute }) {
			return nil
		}
		routes, err := i.host.RouteGet(want.prefix.Addr().AsSlice())
		have := ""
		switch {
		case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH):
			have = "the node has no route"
		case err != nil:
			return fmt.Errorf("the node's route to %s: %w", want.prefix.Addr(), err)
		case len(routes) > 0 && routes[0].LinkIndex != device.Index:
			have = "another interface: " + i.nameOf(routes[0].LinkIndex)
		}
		by := device.Name
		i.check(PartWay, fmt.Sprintf("%s by %s", want.prefix.Addr(), by), have, outside("ip route add %s dev %s", want.prefix.Addr(), by))
		i.fixable(FixWay, func() error { return i.addWay(device, want.prefix) })
	}
	return nil
}

// routedBy is the interface by which the node's routes lead to the pod: the host's end,
// or the bridge that it is a port of. In a VRF they are in other tables than the
// kernel is asked about, so that it is not known then.
func (i *inspection) routedBy() (device *netlink.LinkAttrs, known bool) {
	device = i.ends[0].outer.Attrs()
	if device.MasterIndex == 0 {
		return device, true
	}
	master, err := i.node.linkByIndex(device.MasterIndex)
	if err != nil || master.Type() != "bridge" || master.Attrs().MasterIndex != 0 {
		return nil, false
	}
	return master.Attrs(), true
}

func (i *inspection) nameOf(index int) string {
	link, err := i.host.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("number %d", index)
	}
	return link.Attrs().Name
}

// inTable looks at the table inet crinet.
func (i *inspection) inTable(ctx context.Context) error {
	if i.subject.Table == nil || !i.netnsThere() {
		return nil
	}
	missing, err := i.subject.Table(ctx)
	if err != nil {
		return err
	}
	i.check(PartTable, "what the pod needs in the table inet crinet", strings.Join(missing, "; "),
		"crinetd puts the table right by itself, within a minute: if it stays so, see crinetctl status and crinetd's log; does crinetd run?")
	return nil
}

// sysctls looks whether the node forwards the pod's packets, where it is the pod's
// gateway.
func (i *inspection) sysctls(context.Context) error {
	if !i.want.routed || len(i.ends) == 0 {
		return nil
	}
	device, known := i.routedBy()
	if !known {
		return nil
	}
	seen := make(map[string]bool)
	for _, a := range i.want.addresses {
		keys := []string{"net/ipv4/ip_forward", "net/ipv4/conf/" + device.Name + "/forwarding"}
		if a.prefix.Addr().Is6() {
			keys = []string{"net/ipv6/conf/all/forwarding"}
		}
		for _, key := range keys {
			if seen[key] {
				continue
			}
			seen[key] = true
			value, err := i.node.sysctl(key)
			if errors.Is(err, os.ErrNotExist) {
				continue // the device went just now
			}
			if err != nil {
				return err
			}
			have := ""
			if value == "0" {
				have = value
			}
			// sysctl(8) takes names with slashes, where devices may have dots.
			i.check(PartSysctl, key+" = 1", have, outside("sysctl -w %s=1", key)+"\nand correct what set it to 0, such as a file in /etc/sysctl.d")
		}
	}
	return nil
}
