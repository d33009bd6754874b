package hostport

import (
	"testing"
)

// TestReach goes every way to a hostPort, on every kind of pod network.
func TestReach(t *testing.T) {
	for _, test := range []struct {
		name, bridge, netfilter string
	}{
		{"bridge with bridge-nf-call-iptables", "cni0", "1"},
		{"bridge without bridge-nf-call-iptables", "cni0", "0"},
		{"veth for each pod", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newTestNode(t, test.bridge)
			if test.netfilter != "" {
				n.bridgeNetfilter(t, test.netfilter)
			}
			web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
			for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
				web.serve(t, "web", network, ":8080")
			}
			if _, err := SetHairpin(t.Context(), web.path(), "eth0", n.node.fd()); err != nil {
				t.Fatal(err)
			}
			m := newManager(t, n.node)
			mustMap(t, m, web.pod(t, "tcp 80:8080", "udp 80:8080"))

			hairpin4, hairpin6 := "web "+gwIP4, "web "+gwIP6
			other4, other6 := "web "+other.ip4, "web "+other.ip6
			if test.netfilter == "0" { // else the answer would go past the node
				other4, other6 = hairpin4, hairpin6
			}
			for _, way := range []struct {
				from             netns
				what, host, want string
				v6               bool
			}{
				{n.client, "from outside", nodeIP4, "web " + clientIP4, false},
				{n.client, "from outside", nodeIP6, "web " + clientIP6, true},
				{n.client, "from outside, to the bridge's address", gwIP4, "web " + clientIP4, false},
				{n.node, "from the node, uplink", nodeIP4, "web " + nodeIP4, false},
				{n.node, "from the node, uplink", nodeIP6, "web " + nodeIP6, true},
				{n.node, "from the node, pod side", gwIP4, "web " + gwIP4, false},
				{n.node, "from the node, pod side", gwIP6, "web " + gwIP6, true},
				{n.node, "from the node, localhost", "127.0.0.1", "web " + gwIP4, false},
				{n.node, "from the node, localhost", "127.0.0.2", "web " + gwIP4, false},
				{n.node, "from the node, localhost", "::1", "", true},
				{other.netns, "from another pod", nodeIP4, other4, false},
				{other.netns, "from another pod", nodeIP6, other6, true},
				{web.netns, "from itself", nodeIP4, hairpin4, false},
				{web.netns, "from itself", nodeIP6, hairpin6, true},
			} {
				t.Run(way.what+" "+way.host, func(t *testing.T) {
					for _, protocol := range []string{"tcp", "udp"} {
						network := protocol + "4"
						if way.v6 {
							network = protocol + "6"
						}
						way.from.expect(t, network, hostPort(way.host, 80), way.want)
					}
				})
			}
		})
	}
}

// TestGivenAddress checks that a mapping for one address leaves the others alone.
func TestGivenAddress(t *testing.T) {
	n := newTestNode(t, "cni0")
	web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
	for _, network := range []string{"tcp4", "tcp6"} {
		web.serve(t, "web", network, ":8080")
		other.serve(t, "other", network, ":8080")
	}
	m := newManager(t, n.node)
	mustMap(t, m, web.pod(t, "tcp 127.0.0.1 80:8080", "tcp "+nodeIP6+" 80:8080", "tcp 0.0.0.0 81:8080", "tcp :: 82:8080"))
	mustMap(t, m, other.pod(t, "tcp "+nodeIP4+" 80:8080"))

	n.client.expect(t, "tcp4", hostPort(nodeIP4, 80), "other "+clientIP4)
	n.node.expect(t, "tcp4", hostPort("127.0.0.1", 80), "web "+gwIP4)
	n.client.expect(t, "tcp6", hostPort(nodeIP6, 80), "web "+clientIP6)
	n.client.expect(t, "tcp4", hostPort(gwIP4, 80), "")
	n.client.expect(t, "tcp4", hostPort(nodeIP4, 81), "web "+clientIP4)
	n.client.expect(t, "tcp6", hostPort(nodeIP6, 81), "")
	n.client.expect(t, "tcp4", hostPort(nodeIP4, 82), "")
	n.client.expect(t, "tcp6", hostPort(nodeIP6, 82), "web "+clientIP6)
	mustUnmap(t, m, "sandbox-other")
	n.client.expect(t, "tcp4", hostPort(nodeIP4, 80), "")
}

// TestTransit checks that traffic which only passes the node is left alone.
func TestTransit(t *testing.T) {
	n := newTestNode(t, "cni0")
	n.bridgeNetfilter(t, "1")
	web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
	for _, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
		web.serve(t, "web", network, ":8080")
		other.serve(t, "other", network, ":80")
		n.client.serve(t, "client", network, ":80")
	}
	m := newManager(t, n.node)
	mustMap(t, m, web.pod(t, "tcp 80:8080", "udp 80:8080"))
	for _, protocol := range []string{"tcp", "udp"} {
		n.client.expect(t, protocol+"4", hostPort(other.ip4, 80), "other "+clientIP4)
		n.client.expect(t, protocol+"6", hostPort(other.ip6, 80), "other "+clientIP6)
		web.expect(t, protocol+"4", hostPort(clientIP4, 80), "client "+web.ip4)
		web.expect(t, protocol+"6", hostPort(other.ip6, 80), "other "+web.ip6)
		n.node.expect(t, protocol+"4", hostPort(clientIP4, 80), "client "+nodeIP4)
	}
}

// TestLoopbackIsNotExposed lets a neighbour and a pod send packets for 127.0.0.1
// to the node (CVE-2020-8558).
func TestLoopbackIsNotExposed(t *testing.T) {
	n := newTestNode(t, "cni0")
	web, attacker := n.addPod(t, "web", 2), n.addPod(t, "attacker", 3)
	n.node.serve(t, "secret", "tcp4", "127.0.0.1:9000")
	n.node.serve(t, "secret", "udp4", "127.0.0.1:9000")
	m := newManager(t, n.node)
	web.serve(t, "web", "tcp4", ":8080")
	mustMap(t, m, web.pod(t, "tcp 80:8080", "tcp 127.0.0.1 9001:8080"))
	n.node.expect(t, "tcp4", "127.0.0.1:9001", "web "+gwIP4)
	if got := n.node.readSysctl(t, "net/ipv4/conf/cni0/route_localnet"); got != "1" {
		t.Fatalf("route_localnet of cni0 is %s", got)
	}
	if got := n.node.readSysctl(t, "net/ipv4/conf/uplink/route_localnet"); got != "0" {
		t.Errorf("route_localnet of uplink is %s", got)
	}
	for _, neighbour := range []struct {
		netns
		via string
	}{{n.client, nodeIP4}, {attacker.netns, gwIP4}} {
		neighbour.run(t, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
		neighbour.sysctl(t, "net/ipv4/conf/eth0/route_localnet", "1")
		neighbour.run(t, "ip", "route", "add", "127.0.0.1", "via", neighbour.via)
		neighbour.expect(t, "tcp4", "127.0.0.1:9000", "")
		neighbour.expect(t, "udp4", "127.0.0.1:9000", "")
		neighbour.expect(t, "tcp4", "127.0.0.1:9001", "")
	}
	// The attack is a real one: without the guard it succeeds.
	n.node.nft(t, "flush chain inet crinet guard")
	attacker.expect(t, "tcp4", "127.0.0.1:9000", "secret "+attacker.ip4)
}

// TestServicesWin puts Service rules for the same port into the kernel, before and
// after ours, in both of kube-proxy's forms.
func TestServicesWin(t *testing.T) {
	const target = "10.1.0.3:8080"
	forms := map[string]func(t *testing.T, n *testNode){
		"nftables": func(t *testing.T, n *testNode) {
			n.node.nft(t, `table ip kube-proxy {
				chain services { fib daddr type local tcp dport 80 dnat to `+target+`; }
				chain pre { type nat hook prerouting priority dstnat; jump services; }
				chain out { type nat hook output priority -100; jump services; }
			}`)
		},
		"iptables": func(t *testing.T, n *testNode) {
			for _, chain := range []string{"PREROUTING", "OUTPUT"} {
				n.node.run(t, "iptables-nft", "-t", "nat", "-A", chain, "-m", "addrtype", "--dst-type", "LOCAL",
					"-p", "tcp", "--dport", "80", "-j", "DNAT", "--to-destination", target)
			}
		},
	}
	for name, install := range forms {
		for _, first := range []bool{true, false} {
			t.Run(name+map[bool]string{true: " before", false: " after"}[first], func(t *testing.T) {
				needRoot(t, "iptables-nft")
				n := newTestNode(t, "cni0")
				web, service := n.addPod(t, "web", 2), n.addPod(t, "service", 3)
				web.serve(t, "web", "tcp4", ":8080")
				service.serve(t, "service", "tcp4", ":8080")
				if first {
					install(t, n)
				}
				m := newManager(t, n.node)
				mustMap(t, m, web.pod(t, "tcp 80:8080", "tcp 81:8080"))
				if !first {
					install(t, n)
				}
				n.client.expect(t, "tcp4", hostPort(nodeIP4, 80), "service "+clientIP4)
				n.node.expect(t, "tcp4", hostPort(nodeIP4, 80), "service "+nodeIP4)
				n.client.expect(t, "tcp4", hostPort(nodeIP4, 81), "web "+clientIP4)
			})
		}
	}
}
