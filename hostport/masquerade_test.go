package hostport

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// subnets gives the addresses the lengths of their subnets.
func subnets(ips []netip.Addr, bits4, bits6 int) []netip.Prefix {
	var all []netip.Prefix
	for _, ip := range ips {
		bits := bits6
		if ip.Is4() {
			bits = bits4
		}
		all = append(all, netip.PrefixFrom(ip, bits))
	}
	return all
}

// masqueraded is the pod without hostPorts, with the node's subnets.
func (p testPodNS) masqueraded(t testing.TB) Pod {
	t.Helper()
	pod := p.pod(t)
	pod.Masquerade = subnets(pod.IPs, 24, 64)
	return pod
}

func onDemand(c *Config) { c.OnDemand = true }

// TestMasqueradeElements compares the elements and chains of pods that come, change
// and go.
func TestMasqueradeElements(t *testing.T) {
	ns := nftNetNS(t)
	m := newManager(t, ns)
	empty := listTable(t, ns)
	expect := func(what string, chains []string, elements ...string) {
		t.Helper()
		rules, got := split(listTable(t, ns))
		if diff := cmp.Diff(elements, got); diff != "" {
			t.Errorf("%s: elements (-want +got):\n%s", what, diff)
		}
		var found []string
		for line := range strings.Lines(rules) {
			if name, ok := strings.CutPrefix(line, "\tchain outside_"); ok {
				found = append(found, strings.TrimSuffix(name, " {\n"))
			}
		}
		slices.Sort(found)
		if diff := cmp.Diff(chains, found); diff != "" {
			t.Errorf("%s: chains (-want +got):\n%s", what, diff)
		}
		if err := isIntact(ns, m); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	pod := func(name, address string, mappings ...string) Pod {
		prefix := netip.MustParsePrefix(address)
		p := testPod(t, name, []string{prefix.Addr().String()}, mappings...)
		p.Masquerade = []netip.Prefix{prefix}
		return p
	}
	mustMap(t, m, pod("web", "10.1.0.2/20"))
	expect("one", []string{"10.1.0.0/20"}, `10.1.0.2 comment "default/web" : goto outside_10.1.0.0/20`)
	mustMap(t, m, pod("dns", "10.1.1.3/20", "udp 53:53"))
	expect("two in a subnet", []string{"10.1.0.0/20"}, `udp . 53 comment "default/dns" : 10.1.1.3 . 53`,
		`10.1.1.3 . 10.1.1.3 comment "default/dns"`,
		`10.1.0.2 comment "default/web" : goto outside_10.1.0.0/20`, `10.1.1.3 comment "default/dns" : goto outside_10.1.0.0/20`)
	mustUnmap(t, m, "sandbox-dns")
	mustMap(t, m, pod("web", "10.1.0.2/32"))
	expect("another subnet", []string{"10.1.0.2/32"}, `10.1.0.2 comment "default/web" : goto outside_10.1.0.2/32`)
	mustMap(t, m, pod("six", "fd00:1:2::9/48"))
	expect("IPv6", []string{"10.1.0.2/32", "fd00_1_2__/48"}, `10.1.0.2 comment "default/web" : goto outside_10.1.0.2/32`,
		`fd00:1:2::9 comment "default/six" : goto outside_fd00_1_2__/48`)
	// The pod that came later has the address of one that is being removed.
	mustMap(t, m, pod("after", "10.1.0.2/24"))
	expect("one address twice", []string{"10.1.0.0/24", "10.1.0.2/32", "fd00_1_2__/48"},
		`10.1.0.2 comment "default/after" : goto outside_10.1.0.0/24`, `fd00:1:2::9 comment "default/six" : goto outside_fd00_1_2__/48`)
	for _, id := range []string{"sandbox-after", "sandbox-six", "sandbox-web"} {
		mustUnmap(t, m, id)
	}
	if diff := cmp.Diff(empty, listTable(t, ns)); diff != "" {
		t.Errorf("not empty in the end:\n%s", diff)
	}
}

// TestMasqueradeTraffic goes every way out of a pod whose network masquerades, and
// of one whose network does not.
func TestMasqueradeTraffic(t *testing.T) {
	for _, netfilter := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables "+netfilter, func(t *testing.T) {
			n := newTestNode(t, "cni0")
			n.bridgeNetfilter(t, netfilter)
			web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
			for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
				n.client.serve(t, "client", network, ":80")
				n.node.serve(t, "node", network, ":81")
				web.serve(t, "web", network, ":8080")
				other.serve(t, "other", network, ":8080")
			}
			m := newManager(t, n.node)
			mustMap(t, m, web.masqueraded(t))
			for _, protocol := range []string{"tcp", "udp"} {
				web.expect(t, protocol+"4", hostPort(clientIP4, 80), "client "+nodeIP4)
				web.expect(t, protocol+"6", hostPort(clientIP6, 80), "client "+nodeIP6)
				web.expect(t, protocol+"4", hostPort(other.ip4, 8080), "other "+web.ip4)
				web.expect(t, protocol+"6", hostPort(other.ip6, 8080), "other "+web.ip6)
				web.expect(t, protocol+"4", hostPort(gwIP4, 81), "node "+web.ip4)
				other.expect(t, protocol+"4", hostPort(clientIP4, 80), "client "+other.ip4)
				n.client.expect(t, protocol+"4", hostPort(web.ip4, 8080), "web "+clientIP4)
				n.client.expect(t, protocol+"6", hostPort(web.ip6, 8080), "web "+clientIP6)
				n.node.expect(t, protocol+"4", hostPort(clientIP4, 80), "client "+nodeIP4)
			}
			mustUnmap(t, m, "sandbox-web")
			web.expect(t, "tcp4", hostPort(clientIP4, 80), "client "+web.ip4)
		})
	}
}

// TestMasqueradeMulticast sends to groups over a bridge whose frames pass the rules.
func TestMasqueradeMulticast(t *testing.T) {
	n := newTestNode(t, "cni0")
	n.bridgeNetfilter(t, "1")
	n.node.run(t, "ip", "link", "set", "cni0", "type", "bridge", "mcast_snooping", "0")
	web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
	m := newManager(t, n.node)
	mustMap(t, m, web.masqueraded(t))
	for network, want := range map[string]struct{ group, from string }{
		"udp4": {"239.1.2.3", web.ip4}, "udp6": {"ff05::1:2:3", web.ip6},
	} {
		group := &net.UDPAddr{IP: net.ParseIP(want.group), Port: 9000}
		var l *net.UDPConn
		other.mustDo(t, func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err == nil {
				l, err = net.ListenMulticastUDP(network, eth0, group)
			}
			return err
		})
		defer l.Close()
		web.mustDo(t, func() error {
			conn, err := net.DialUDP(network, &net.UDPAddr{IP: net.ParseIP(want.from)}, group)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write([]byte("hello"))
			return err
		})
		if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, from, err := l.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil || from.Addr().Unmap().String() != want.from {
			t.Errorf("%s: from %v (%v), want %s", network, from, err, want.from)
		}
	}
}

// TestMasqueradeHeals lets others flush and change what masquerades.
func TestMasqueradeHeals(t *testing.T) {
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	n.client.serve(t, "client", "tcp4", ":80")
	m := newManager(t, n.node)
	mustMap(t, m, web.masqueraded(t))
	run(t, t.Context(), n.node, m)
	for _, script := range []string{
		"flush ruleset", "delete table inet crinet", "flush map inet crinet masquerade4", "flush chain inet crinet outside_10.1.0.0/24",
		"add element inet crinet masquerade4 { 10.1.0.9 : goto outside_10.1.0.0/24 }", "flush chain inet crinet postrouting",
		"insert rule inet crinet outside_10.1.0.0/24 return", "add chain inet crinet outside_10.2.0.0/24",
	} {
		n.node.nft(t, script)
		waitIntact(t, n.node, m, 20*time.Second)
		web.expect(t, "tcp4", hostPort(clientIP4, 80), "client "+nodeIP4)
	}
}

// TestTableOnDemand runs pods on a node whose hostPorts are somebody else's.
func TestTableOnDemand(t *testing.T) {
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	n.client.serve(t, "client", "tcp4", ":80")
	healed := 0
	m := newManager(t, n.node, onDemand, func(c *Config) { c.OnHeal = func(string) { healed++ } })
	tables := func(want string) {
		t.Helper()
		if got := strings.TrimSpace(n.node.run(t, "nft", "list", "tables")); got != want {
			t.Errorf("tables: %q, want %q", got, want)
		}
	}
	for range 2 {
		tables("")
		mustMap(t, m, web.masqueraded(t))
		tables("table inet crinet")
		web.expect(t, "tcp4", hostPort(clientIP4, 80), "client "+nodeIP4)
		mustUnmap(t, m, "sandbox-web")
	}
	tables("")
	if healed > 0 {
		t.Errorf("healed %d times, but nobody changed anything", healed)
	}
	mustMap(t, m, web.masqueraded(t))
	n.node.nft(t, "flush ruleset")
	if again, err := m.check(t.Context(), ""); !again || err != nil {
		t.Errorf("healed: %v, %v", again, err)
	}
	// Another run finds the pod, and takes the table over as it is.
	next := newManagerFor(t, n.node, onDemand)
	if err := next.Sync(t.Context(), []Pod{web.masqueraded(t)}); err != nil {
		t.Fatal(err)
	}
	tables("table inet crinet")
	mustUnmap(t, next, "sandbox-web")
	tables("")
}

// TestNoTableOnDemand is a node whose kernel cannot have the table, which is known
// before a pod needs it.
func TestNoTableOnDemand(t *testing.T) {
	ns := nftNetNS(t)
	m := newManagerFor(t, ns, onDemand)
	lacks := true
	breakHost(m, func(call string) bool { return lacks && call == "Replace" }, func() bool { return false })
	if err := m.Sync(t.Context(), nil); err != nil {
		t.Errorf("Sync without pods: %v", err)
	}
	if err := m.Available(); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errInjected) {
		t.Errorf("Available says %v", err)
	}
	if tables := ns.run(t, "nft", "list", "tables"); tables != "" {
		t.Errorf("tables: %s", tables)
	}
	lacks = false // a module was loaded
	if healed, err := m.check(t.Context(), ""); healed || err != nil {
		t.Errorf("healed: %v, %v", healed, err)
	}
	if err := m.Available(); err != nil {
		t.Errorf("Available says %v", err)
	}
}
