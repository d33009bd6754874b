package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const sysctlConcern = "sysctls"

func sysctlChecks() []Check {
	return []Check{
		{Name: "ip-forward", Looks: "net.ipv4.ip_forward, and forwarding of uplinks and the pods' bridges", Severity: Error, run: ipForward,
			Why: "the kernel drops every packet between pods and the rest of the world"},
		{Name: "ipv6-forward", Looks: "net.ipv6.conf.all.forwarding, where pods have IPv6 addresses", Severity: Error, run: ipv6Forward,
			Why: "the kernel drops every IPv6 packet between pods and the rest of the world"},
		{Name: "ipv6-disabled", Looks: "net.ipv6.conf.*.disable_ipv6, where pods have IPv6 addresses", Severity: Error, run: ipv6Disabled,
			Why: "the plugins cannot give pods an IPv6 address"},
		{Name: "ipv6-accept-ra", Looks: "accept_ra of uplinks that get IPv6 routes by router advertisements", Severity: Warning, run: acceptRA,
			Why: "a node that forwards ignores router advertisements unless accept_ra is 2: its IPv6 default route runs out"},
		{Name: "rp-filter", Looks: "rp_filter, where replies may take another way than requests", Severity: Warning, run: rpFilter,
			Why: "the kernel silently drops packets that come in by another interface than their reply would leave by"},
		{Name: "bridge-nf-call", Looks: "bridge-nf-call-iptables and its ip6tables twin, and the module br_netfilter", Severity: Warning, run: bridgeNF,
			Why: "a pod that reaches a pod of its own node through a Service gets the answer from another address, and drops it"},
	}
}

// interesting are the uplinks and the pods' bridges, by name.
func (n *Node) interesting(ctx context.Context) []string {
	l, err := n.askLinks(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, link := range l.uplinks() {
		names = append(names, link.Attrs().Name)
	}
	if net := n.selected(ctx); net != nil {
		for _, bridge := range net.bridges() {
			if l.named(bridge) != nil {
				names = append(names, bridge)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// sysctlName is the name of a link in paths of sysctls, where a dot would be a slash
// for sysctl(8).
func sysctlName(link string) string { return strings.ReplaceAll(link, ".", "/") }

func ipForward(ctx context.Context, n *Node) Result {
	value, err := n.number("net/ipv4/ip_forward")
	if err != nil {
		return unknown("%v", err)
	}
	if value == 0 {
		return bad(n.setSysctl("net/ipv4/ip_forward", "1"), "net.ipv4.ip_forward is 0")
	}
	for _, link := range n.interesting(ctx) {
		name := "net/ipv4/conf/" + link + "/forwarding"
		if v, err := n.number(name); err == nil && v == 0 {
			return bad("sysctl -w net.ipv4.conf."+sysctlName(link)+".forwarding=1", "net.ipv4.ip_forward is 1, but net.ipv4.conf.%s.forwarding is 0", link)
		}
	}
	return good("net.ipv4.ip_forward is 1")
}

// withoutIPv6 is the result of a check that is about pods with IPv6 addresses.
func (n *Node) withoutIPv6(ctx context.Context) *Result {
	if _, v6 := n.podSubnets(ctx); len(v6) == 0 {
		r := skip("the selected network gives pods no IPv6 addresses, as far as its configuration tells")
		return &r
	}
	return nil
}

func ipv6Forward(ctx context.Context, n *Node) Result {
	if r := n.withoutIPv6(ctx); r != nil {
		return *r
	}
	value, err := n.number("net/ipv6/conf/all/forwarding")
	switch {
	case isMissing(err):
		return bad("boot without ipv6.disable=1", "the kernel has no IPv6, and the pods' network has")
	case err != nil:
		return unknown("%v", err)
	case value == 0:
		return bad(n.setSysctl("net/ipv6/conf/all/forwarding", "1"), "net.ipv6.conf.all.forwarding is 0")
	}
	return good("net.ipv6.conf.all.forwarding is 1")
}

func ipv6Disabled(ctx context.Context, n *Node) Result {
	if r := n.withoutIPv6(ctx); r != nil {
		return *r
	}
	for _, link := range append([]string{"all", "default"}, n.interesting(ctx)...) {
		if v, err := n.number("net/ipv6/conf/" + link + "/disable_ipv6"); err == nil && v == 1 {
			return bad(n.setSysctl("net/ipv6/conf/"+link+"/disable_ipv6", "0"), "net.ipv6.conf.%s.disable_ipv6 is 1", link)
		}
	}
	return good("IPv6 is not disabled")
}

func acceptRA(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if v, err := n.number("net/ipv6/conf/all/forwarding"); err != nil || v == 0 {
		return skip("the node does not forward IPv6")
	}
	for _, r := range l.routes {
		if r.Family != netlink.FAMILY_V6 || !isDefault(r) || r.Protocol != unix.RTPROT_RA || r.LinkIndex == 0 {
			continue
		}
		link := l.name(r.LinkIndex)
		if n.runs(ctx, "systemd-network", "NetworkManager") {
			return good("the IPv6 default route on %s is from a router advertisement, which a network manager reads itself", link)
		}
		if v, err := n.number("net/ipv6/conf/" + link + "/accept_ra"); err == nil && v != 2 {
			return bad(n.setSysctl("net/ipv6/conf/"+link+"/accept_ra", "2"), "accept_ra of %s is %d, its default route is from a router advertisement, and the node forwards", link, v)
		}
	}
	return good("no IPv6 default route depends on accept_ra")
}

// detour says why replies may take another way than requests; empty if they do not.
func (l *links) detour() string {
	if up := l.uplinks(); len(up) > 1 {
		return fmt.Sprintf("there are default routes by %d interfaces", len(up))
	}
	for _, r := range l.rules {
		if !slices.Contains([]int{unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT}, r.Table) {
			return fmt.Sprintf("a policy rule (priority %d) looks into routing table %d", r.Priority, r.Table)
		}
	}
	if t := l.tunnels(); len(t) > 0 {
		return "there is the tunnel " + t[0].Attrs().Name
	}
	return ""
}

func rpFilter(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	all, err := n.number("net/ipv4/conf/all/rp_filter")
	if err != nil {
		return unknown("%v", err)
	}
	why := l.detour()
	var strict []string
	first := ""
	names := n.interesting(ctx)
	for _, tunnel := range l.tunnels() {
		names = append(names, tunnel.Attrs().Name)
	}
	for _, link := range names {
		own, err := n.number("net/ipv4/conf/" + link + "/rp_filter")
		if err == nil && max(all, own) == 1 { // the kernel takes the larger one
			strict = append(strict, link)
			first = strings.Join([]string{first, "sysctl -w net.ipv4.conf." + sysctlName(link) + ".rp_filter=2"}, " && ")
		}
	}
	switch {
	case len(strict) == 0:
		return good("rp_filter is strict on no uplink, bridge or tunnel")
	case why == "":
		return good("rp_filter is strict on %s, which does no harm: there is one way in and out", few(strict))
	}
	return bad(strings.TrimPrefix(first, " && ")+"; to keep it: a file in /etc/sysctl.d that sorts last", "rp_filter is strict (1) on %s, and %s", few(strict), why)
}

func bridgeNF(ctx context.Context, n *Node) Result {
	net := n.selected(ctx)
	if !n.Options.Noop() && (net == nil || len(net.bridges()) == 0) {
		return skip("the pods' network has no Linux bridge")
	}
	_, v6 := n.podSubnets(ctx)
	for _, name := range []string{"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"} {
		if strings.Contains(name, "ip6") && len(v6) == 0 && !n.Options.Noop() {
			continue
		}
		value, err := n.number(name)
		switch {
		case isMissing(err):
			return bad("modprobe br_netfilter && echo br_netfilter >/etc/modules-load.d/crinet.conf", "the module br_netfilter is not loaded (%s)", n.moduleState(ctx, "br_netfilter"))
		case err != nil:
			return unknown("%v", err)
		case value != 1:
			return bad(n.setSysctl(name, "1"), "%s is %d", strings.ReplaceAll(name, "/", "."), value)
		}
	}
	return good("bridged packets pass netfilter")
}
