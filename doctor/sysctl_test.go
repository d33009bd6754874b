package doctor

import (
	"net"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const upFlags = unix.IFF_UP | unix.IFF_LOWER_UP

// link is a link for links made by hand.
func link(index int, name string, change func(*netlink.LinkAttrs)) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Index, a.Name, a.MTU, a.RawFlags, a.Flags, a.NetNsID = index, name, 1500, upFlags, net.FlagUp, -1
	if change != nil {
		change(&a)
	}
	return &netlink.Dummy{LinkAttrs: a}
}

// linksOf are links with a default route by the first one.
func linksOf(all ...netlink.Link) *links {
	l := &links{all: all, byID: make(map[int]netlink.Link)}
	for _, one := range all {
		l.byID[one.Attrs().Index] = one
	}
	l.routes = []netlink.Route{{LinkIndex: all[0].Attrs().Index, Family: netlink.FAMILY_V4, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN}}
	return l
}

// addr adds an address to a link.
func (l *links) addr(index int, cidr string) *links {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		panic(err)
	}
	a.LinkIndex = index
	l.addrs = append(l.addrs, *a)
	return l
}

// route adds a route without a gateway.
func (l *links) route(index int, cidr string) *links {
	_, dst, err := net.ParseCIDR(cidr)
	if err != nil {
		panic(err)
	}
	l.routes = append(l.routes, netlink.Route{LinkIndex: index, Dst: dst, Family: netlink.FAMILY_V4, Type: unix.RTN_UNICAST, Table: unix.RT_TABLE_MAIN})
	return l
}

func TestSysctlChecks(t *testing.T) {
	t.Parallel()
	const v4, v6 = "/proc/sys/net/ipv4/", "/proc/sys/net/ipv6/conf/"
	of := func(files map[string]string, more ...string) map[string]string {
		for i := 0; i < len(more); i += 2 {
			files[more[i]] = more[i+1]
		}
		return files
	}
	six := func(more ...string) map[string]string {
		return of(map[string]string{"/etc/cni/net.d/10-dual.conflist": dual}, more...)
	}
	one := func() *links { return linksOf(link(1, "eth0", nil), link(2, "mynet0", nil)) }
	two := one()
	two.routes = append(two.routes, netlink.Route{LinkIndex: 2, Type: unix.RTN_UNICAST})
	ruled := one()
	ruled.rules = []netlink.Rule{{Table: 100, Priority: 32000}}
	advertised := one()
	advertised.routes = append(advertised.routes, netlink.Route{LinkIndex: 1, Family: netlink.FAMILY_V6, Protocol: unix.RTPROT_RA, Type: unix.RTN_UNICAST})
	guard := &ruleset{tables: []*nftables.Table{{Name: "crinet", Family: nftables.TableFamilyINet}}}
	guard.chains = []*nftables.Chain{{Name: "guard", Table: guard.tables[0]}}
	strict := []string{v4 + "conf/all/rp_filter", "0", v4 + "conf/eth0/rp_filter", "1"}
	const called, called6 = "/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	run(t, []tc{
		{name: "on", check: "ip-forward", files: conf(v4+"ip_forward", "1\n"), want: OK},
		{name: "off", check: "ip-forward", files: conf(v4+"ip_forward", "0\n"), want: Outcome(Error), mend: "sysctl -w net.ipv4.ip_forward=1; to keep it: echo"},
		{name: "off by a file", check: "ip-forward", files: conf(v4+"ip_forward", "0\n", "/usr/lib/sysctl.d/50-a.conf", "net.ipv4.ip_forward=1\n", "/etc/sysctl.d/60-b.conf", "\n# x\nnet/ipv4/ip_forward = 0\n"),
			want: Outcome(Error), mend: "in /etc/sysctl.d/60-b.conf:3 (now: net/ipv4/ip_forward = 0)"},
		{name: "hidden file", check: "ip-forward", files: conf(v4+"ip_forward", "0\n", "/usr/lib/sysctl.d/50-a.conf", "net.ipv4.ip_forward=0\n", "/etc/sysctl.d/50-a.conf", "\n"), want: Outcome(Error), mend: "to keep it"},
		{name: "off at the bridge", check: "ip-forward", files: conf(v4+"ip_forward", "1\n", v4+"conf/mynet0/forwarding", "0"), links: one(), want: Outcome(Error), found: "mynet0.forwarding is 0", mend: "conf.mynet0.forwarding=1"},
		{name: "nonsense", check: "ip-forward", files: conf(v4+"ip_forward", "?"), want: Unknown},
		{name: "no IPv6", check: "ipv6-forward", files: conf(v6+"all/forwarding", "0"), want: Skipped},
		{name: "on", check: "ipv6-forward", files: six(v6+"all/forwarding", "1"), want: OK},
		{name: "off", check: "ipv6-forward", files: six(v6+"all/forwarding", "0"), want: Outcome(Error), mend: "sysctl -w net.ipv6.conf.all.forwarding=1"},
		{name: "none", check: "ipv6-forward", files: six(), want: Outcome(Error), mend: "ipv6.disable"},
		{name: "pod CIDR", check: "ipv6-forward", files: map[string]string{"/etc/cni/net.d/a.conflist": `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}}]}`, v6 + "all/forwarding": "0"},
			flags: []string{"--pod-cidr=10.1.0.0/24,fd00::/64"}, want: Outcome(Error)},
		{name: "on", check: "ipv6-disabled", files: six(v6+"all/disable_ipv6", "0"), want: OK},
		{name: "off", check: "ipv6-disabled", files: six(v6+"default/disable_ipv6", "1"), want: Outcome(Error), found: "default", mend: "sysctl -w net.ipv6.conf.default.disable_ipv6=0"},
		{name: "static", check: "ipv6-accept-ra", files: conf(v6+"all/forwarding", "1", v6+"eth0/accept_ra", "1"), links: one(), want: OK},
		{name: "does not forward", check: "ipv6-accept-ra", files: conf(v6+"all/forwarding", "0"), links: advertised, want: Skipped},
		{name: "advertised", check: "ipv6-accept-ra", files: conf(v6+"all/forwarding", "1", v6+"eth0/accept_ra", "1"), links: advertised, want: Outcome(Warning), found: "accept_ra of eth0 is 1", mend: "accept_ra=2"},
		{name: "accepted", check: "ipv6-accept-ra", files: conf(v6+"all/forwarding", "1", v6+"eth0/accept_ra", "2"), links: advertised, want: OK},
		{name: "managed", check: "ipv6-accept-ra", files: conf(v6+"all/forwarding", "1", v6+"eth0/accept_ra", "0", "/proc/3/comm", "systemd-network\n"), links: advertised, want: OK},
		{name: "strict, one way", check: "rp-filter", files: conf(strict...), links: one(), want: OK, found: "does no harm"},
		{name: "strict, two uplinks", check: "rp-filter", files: conf(strict...), links: two, want: Outcome(Warning), found: "2 interfaces", mend: "net.ipv4.conf.eth0.rp_filter=2"},
		{name: "strict, policy routing", check: "rp-filter", files: conf(strict...), links: ruled, want: Outcome(Warning), found: "table 100"},
		{name: "loose wins", check: "rp-filter", files: conf(v4+"conf/all/rp_filter", "2", v4+"conf/eth0/rp_filter", "1"), links: ruled, want: OK},
		{name: "closed", check: "route-localnet", files: conf(v4+"conf/mynet0/route_localnet", "0"), want: OK, found: "no interface"},
		{name: "open", check: "route-localnet", files: conf(v4+"conf/mynet0/route_localnet", "1", v4+"conf/eth0/route_localnet", "0"), want: Outcome(Warning), found: "mynet0: ", mend: "net.ipv4.conf.mynet0.route_localnet=0"},
		{name: "guarded", check: "route-localnet", files: conf(v4+"conf/mynet0/route_localnet", "1"), rules: guard, want: OK, found: "crinet's table"},
		{name: "all open", check: "route-localnet", files: conf(v4+"conf/all/route_localnet", "1"), rules: guard, want: Outcome(Warning), found: "all: "},
		{name: "kube-proxy's", check: "route-localnet", files: conf(v4+"conf/all/route_localnet", "1"), rules: &ruleset{chains: []*nftables.Chain{{Name: "KUBE-FIREWALL", Table: guard.tables[0]}}}, want: OK},
		{name: "on", check: "bridge-nf-call", files: conf(called, "1", called6, "0"), want: OK},
		{name: "off", check: "bridge-nf-call", files: conf(called, "0"), want: Outcome(Warning), mend: "sysctl -w net.bridge.bridge-nf-call-iptables=1"},
		{name: "off for IPv6", check: "bridge-nf-call", files: six(called, "1", called6, "0"), want: Outcome(Warning), mend: "bridge-nf-call-ip6tables=1"},
		{name: "not loaded", check: "bridge-nf-call", files: conf("/proc/sys/kernel/osrelease", "6.1.0\n", "/lib/modules/6.1.0/modules.dep", "kernel/net/bridge/br_netfilter.ko.xz: x\n"), want: Outcome(Warning), found: "it can be loaded", mend: "modprobe br_netfilter"},
		{name: "no such module", check: "bridge-nf-call", files: conf("/proc/sys/kernel/osrelease", "6.1.0\n", "/lib/modules/6.1.0/modules.dep", ""), want: Outcome(Warning), found: "has no such module"},
		{name: "kernel removed", check: "bridge-nf-call", files: conf("/proc/sys/kernel/osrelease", "6.1.0\n"), want: Outcome(Warning), found: "without a reboot"},
		{name: "no bridge", check: "bridge-nf-call", files: map[string]string{"/etc/cni/net.d/a.conflist": `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"ptp"}]}`}, want: Skipped},
	})
}
