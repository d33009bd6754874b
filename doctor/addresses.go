package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/kubelet"
)

const addressConcern = "addresses"

func addressChecks() []Check {
	return []Check{
		{Name: "uplink", Looks: "the node's default route, and whether its interface is up", Severity: Warning, run: uplinkUp,
			Why: "neither the node nor its pods reach the outside"},
		{Name: "bridge-gateway", Looks: "the pods' bridge: up, with the gateway's address", Severity: Error, run: bridgeGateway,
			Why: "running pods at the bridge reach nothing beyond it"},
		{Name: "pod-addresses", Looks: "whether two pods have one address", Severity: Error, run: podAddresses,
			After: []string{"crinetd-answers"}, Why: "packets for one of the two go to the other"},
		{Name: "mtu", Looks: "MTU of the pods' bridge, its ports and the configuration against uplink and tunnels", Severity: Warning, run: mtuFits,
			Why: "small packets pass and large ones are lost: connections open, then hang"},
		{Name: "subnet-overlap-node", Looks: "the pods' subnets against the node's addresses and routes", Severity: Error, run: overlapNode,
			Why: "packets go to pods instead of to other hosts, or the other way round"},
		{Name: "subnet-overlap-service", Looks: "the pods' subnets against the Services' range and the cluster's DNS address", Severity: Error, run: overlapService,
			Why: "a Service's address is a pod's as well: both are reached by chance"},
		{Name: "subnet-overlap-networks", Looks: "the subnets of the conf dir's networks against each other", Severity: Warning, run: overlapNetworks,
			Why: "a change of the network gives addresses away that running pods have"},
	}
}

func uplinkUp(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	_, v6 := n.podSubnets(ctx)
	for _, family := range []struct {
		number int
		name   string
		wanted bool
	}{{netlink.FAMILY_V4, "IPv4", l.hasGlobal(true)}, {netlink.FAMILY_V6, "IPv6", len(v6) > 0 && l.hasGlobal(false)}} {
		if family.wanted && !slices.ContainsFunc(l.routes, func(r netlink.Route) bool {
			return isDefault(r) && r.Family == family.number && r.Type == unix.RTN_UNICAST
		}) {
			return bad("ip route add default via GATEWAY; and in the configuration of the node's network", "the node has no default route for %s", family.name)
		}
	}
	up := l.uplinks()
	if len(up) == 0 {
		return bad("ip route add default via GATEWAY; and in the configuration of the node's network", "the node has no default route")
	}
	for _, link := range up {
		if !hasCarrier(link) {
			return bad("ip link set "+link.Attrs().Name+" up; is the cable or the virtual port connected?", "the default route's interface %s is down", link.Attrs().Name)
		}
	}
	return good("the default route leads by %s", up[0].Attrs().Name)
}

// hasGlobal says whether a link that is no bridge has an address of the family that is
// known beyond the link.
func (l *links) hasGlobal(v4 bool) bool {
	return slices.ContainsFunc(l.addrs, func(a netlink.Addr) bool {
		link := l.byID[a.LinkIndex]
		return link != nil && link.Type() != "bridge" && (a.IP.To4() != nil) == v4 && a.Scope == unix.RT_SCOPE_UNIVERSE
	})
}

// hasCarrier says whether a link is up and connected. (Its operational state follows
// with a delay.)
func hasCarrier(link netlink.Link) bool {
	const both = unix.IFF_UP | unix.IFF_LOWER_UP
	return link.Attrs().RawFlags&both == both
}

// bridgeOf returns the selected network's bridge plugin and its link, which is nil
// until the first pod.
func (n *Node) bridgeOf(ctx context.Context, l *links) (p *plugin, name string, link netlink.Link) {
	net := n.selected(ctx)
	if net == nil {
		return nil, "", nil
	}
	for _, p := range net.interfaces() {
		if p.Type == "bridge" {
			name := cmp.Or(p.Bridge, defaultBridge)
			return &p, name, l.named(name)
		}
	}
	return nil, "", nil
}

func bridgeGateway(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	p, name, link := n.bridgeOf(ctx, l)
	switch {
	case p == nil:
		return skip("the pods' network has no Linux bridge")
	case link == nil:
		return skip("the bridge %s is made with the first pod", name)
	case link.Attrs().Flags&unix.IFF_UP == 0:
		return bad("ip link set "+name+" up", "the bridge %s is down", name)
	case !p.IsGateway && !p.IsDefault || len(l.ports(link)) == 0:
		return good("the bridge %s is up", name)
	}
	for _, set := range p.rangeSets(n.podCIDRs(ctx)) {
		for _, r := range set {
			subnet, err := netip.ParsePrefix(r.Subnet)
			if err != nil {
				continue
			}
			gateway := subnet.Masked().Addr().Next()
			if g, err := netip.ParseAddr(r.Gateway); err == nil {
				gateway = g
			}
			if !slices.ContainsFunc(l.addrs, func(a netlink.Addr) bool {
				have, ok := prefix(a.IP, a.Mask)
				return ok && a.LinkIndex == link.Attrs().Index && have.Addr().Unmap() == gateway
			}) {
				return bad(fmt.Sprintf("ip addr add %s/%d dev %s", gateway, subnet.Bits(), name), "the bridge %s has %d ports but not the gateway's address %s", name, len(l.ports(link)), gateway)
			}
		}
	}
	for _, a := range l.addrs {
		if a.LinkIndex == link.Attrs().Index && a.Flags&unix.IFA_F_DADFAILED != 0 {
			return bad(fmt.Sprintf("find who has it too, then: ip addr del %s dev %s; the next pod's ADD gives it back", a.IPNet, name), "%s of the bridge %s failed duplicate address detection", a.IPNet, name)
		}
	}
	return good("the bridge %s is up and has the gateway's address", name)
}

func podAddresses(ctx context.Context, n *Node) Result {
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return n.withoutCrinetd(err)
	}
	owners, pods := make(map[string]string), 0
	for _, p := range c.Pods {
		if p.State != "attached" {
			continue
		}
		pods++
		for _, text := range p.Addresses {
			addr, _, _ := strings.Cut(text, "/")
			if other, twice := owners[addr]; twice && other != p.Name {
				return bad("delete one of the two pods; then crinetctl doctor --check subnet-overlap-networks,host-local-leaks", "%s and %s both have %s", other, p.Name, addr)
			}
			owners[addr] = p.Name
		}
	}
	return good("%s, %s, none twice", count(pods, "pod"), count(len(owners), "address"))
}

// overhead is what a tunnel takes from its uplink's MTU, in bytes (IPv4).
func overhead(kind string) int {
	switch kind {
	case "vxlan", "geneve":
		return 50
	case "wireguard":
		return 60
	case "gre":
		return 24
	case "gretap":
		return 38
	}
	return 20
}

func mtuFits(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	up := l.uplinks()
	if len(up) == 0 {
		return skip("the node has no uplink")
	}
	uplink := up[0].Attrs()
	limit, by := uplink.MTU, "uplink "+uplink.Name
	for _, t := range l.tunnels() {
		if most := uplink.MTU - overhead(t.Type()); t.Attrs().MTU > most {
			return bad(fmt.Sprintf("ip link set %s mtu %d; and in the settings of who makes it", t.Attrs().Name, most),
				"the tunnel %s has MTU %d, its uplink %s %d: %d is the most for %s", t.Attrs().Name, t.Attrs().MTU, uplink.Name, uplink.MTU, most, t.Type())
		}
		if routesPods(l, t) && t.Attrs().MTU < limit {
			limit, by = t.Attrs().MTU, "tunnel "+t.Attrs().Name
		}
	}
	net := n.selected(ctx)
	if net == nil {
		return good("uplink %s has MTU %d", uplink.Name, uplink.MTU)
	}
	for _, p := range net.interfaces() {
		if mtu := cmp.Or(p.MTU, n.Options.NetworkPluginMTU); mtu > limit {
			return bad(fmt.Sprintf("set \"mtu\": %d for %s in %s (for new pods)", limit, p.Type, net.File), "%s gives pods MTU %d, %s has %d", net.File, mtu, by, limit)
		}
	}
	_, name, link := n.bridgeOf(ctx, l)
	if link == nil {
		return good("%s has MTU %d", by, limit)
	}
	mtu := link.Attrs().MTU
	if mtu > limit && len(l.ports(link)) > 0 {
		return bad(fmt.Sprintf("ip link set %s mtu %d; and \"mtu\": %d in %s for new pods", name, limit, limit, net.File), "the bridge %s has MTU %d, %s has %d", name, mtu, by, limit)
	}
	for _, port := range l.ports(link) {
		if port.Attrs().MTU > mtu {
			return bad(fmt.Sprintf("ip link set %s mtu %d", name, port.Attrs().MTU), "the bridge %s has MTU %d, its port %s %d", name, mtu, port.Attrs().Name, port.Attrs().MTU)
		}
	}
	return good("the bridge %s has MTU %d, %s %d", name, mtu, by, limit)
}

// routesPods says whether routes lead into a tunnel.
func routesPods(l *links, tunnel netlink.Link) bool {
	return slices.ContainsFunc(l.routes, func(r netlink.Route) bool {
		return r.LinkIndex == tunnel.Attrs().Index && r.Gw != nil && r.Dst != nil
	})
}

func overlapNode(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	v4, v6 := n.podSubnets(ctx)
	subnets := slices.Concat(v4, v6)
	net := n.selected(ctx)
	if len(subnets) == 0 {
		return skip("the addresses of the pods' network are not known")
	}
	const mend = "give the network in %s another subnet and drain the node, or remove the other: ip addr del, ip route del"
	for _, a := range l.addrs {
		have, ok := prefix(a.IP, a.Mask)
		link := l.name(a.LinkIndex)
		if !ok || n.isPods(l, net, a.LinkIndex) || have.Addr().IsLinkLocalUnicast() || have.Addr().IsLoopback() {
			continue
		}
		for _, subnet := range subnets {
			// A node may have an address of its own pods' subnet as the pods' gateway,
			// alone on a link.
			if subnet.Overlaps(have.Masked()) && !have.IsSingleIP() {
				return bad(fmt.Sprintf(mend, net.File), "the pods' subnet %s overlaps with %s, an address of %s", subnet, have, link)
			}
		}
	}
	for _, r := range l.routes {
		if isDefault(r) || r.Dst == nil || n.isPods(l, net, r.LinkIndex) || r.Table != unix.RT_TABLE_MAIN || r.LinkIndex == 0 {
			continue
		}
		have, ok := prefix(r.Dst.IP, r.Dst.Mask)
		if !ok || have.Addr().IsLinkLocalUnicast() || have.Addr().IsMulticast() {
			continue
		}
		for _, subnet := range subnets {
			// Routes inside of the subnet are how some networks reach their pods.
			if have.Bits() <= subnet.Bits() && have.Contains(subnet.Addr()) && r.Gw == nil {
				return bad(fmt.Sprintf(mend, net.File), "the pods' subnet %s overlaps with the route %s by %s", subnet, have, l.name(r.LinkIndex))
			}
		}
	}
	return good("%s overlaps with no address or route of the node", joined(subnets))
}

// isPods says whether a link is one of the pods' network: its bridge, or a pair with a
// pod, or a tunnel to other nodes' pods.
func (n *Node) isPods(l *links, net *network, index int) bool {
	link := l.byID[index]
	if link == nil || slices.Contains(net.bridges(), link.Attrs().Name) {
		return link != nil
	}
	kind := link.Type()
	return kind == "veth" && link.Attrs().NetNsID >= 0 && !slices.ContainsFunc(l.uplinks(), func(u netlink.Link) bool { return u.Attrs().Index == index }) ||
		slices.ContainsFunc(l.tunnels(), func(t netlink.Link) bool { return t.Attrs().Index == index })
}

func joined(all []netip.Prefix) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return few(texts)
}

var (
	serviceRange = regexp.MustCompile(`--service-cluster-ip-range=([^\s"']+)`)
	dnsAddress   = regexp.MustCompile(`^-\s*["']?([0-9a-fA-F.:]+)["']?$`)
)

func overlapService(ctx context.Context, n *Node) Result {
	v4, v6 := n.podSubnets(ctx)
	subnets := slices.Concat(v4, v6)
	if len(subnets) == 0 {
		return skip("the addresses of the pods' network are not known")
	}
	var places []string
	overlaps := func(p netip.Prefix, place string) *Result {
		places = append(places, place)
		for _, subnet := range subnets {
			if subnet.Overlaps(p) {
				r := bad("give the pods' network another subnet: the Services' range cannot be changed later", "the pods' subnet %s overlaps with %s of Services (%s)", subnet, p, place)
				return &r
			}
		}
		return nil
	}
	manifests := n.glob("/etc/kubernetes/manifests/kube-*.yaml")
	for _, l := range n.grep(manifests, serviceRange.MatchString) {
		for text := range strings.SplitSeq(serviceRange.FindStringSubmatch(l.Text)[1], ",") {
			if p, err := netip.ParsePrefix(text); err == nil {
				if r := overlaps(p, l.String()); r != nil {
					return *r
				}
			}
		}
	}
	inDNS := false
	for _, l := range n.grep([]string{kubelet.DefaultConfig}, func(string) bool { return true }) {
		m := dnsAddress.FindStringSubmatch(l.Text)
		if m == nil {
			inDNS = l.Text == "clusterDNS:"
			continue
		}
		if a, err := netip.ParseAddr(m[1]); err == nil && inDNS {
			if r := overlaps(netip.PrefixFrom(a, a.BitLen()), l.String()); r != nil {
				return *r
			}
		}
	}
	if len(places) == 0 {
		return skip("this node's files do not tell the Services' range")
	}
	return good("%s does not overlap with %s", joined(subnets), few(places))
}

func overlapNetworks(ctx context.Context, n *Node) Result {
	if r := n.usesConf(); r != nil {
		return *r
	}
	found, err := n.confDir(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	for i, a := range found.all {
		for _, b := range found.all[i+1:] {
			if a.Name == b.Name {
				return bad("give one of them another name", "%s and %s both have the network name %s: the second is not used", a.File, b.File, a.Name).because("host-local keeps addresses by the network's name, and crinetd uses the first only")
			}
			for _, one := range a.subnets(nil) {
				for _, other := range b.subnets(nil) {
					if one.Overlaps(other) {
						return bad("give "+b.File+" another subnet, or remove the file that is not used", "%s (%s) and %s (%s) overlap", a.File, one, b.File, other)
					}
				}
			}
		}
	}
	return good("%d networks have names and subnets of their own", len(found.all))
}
