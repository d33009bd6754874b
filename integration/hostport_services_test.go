package integration_test

import (
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// A Service's node port and load balancer port, and its load balancer's
// addresses, which are on the node's lo: documentation ranges.
const (
	nodePort     = 30080
	balancerPort = 8443
	balancer4    = "203.0.113.10"
	balancer6    = "2001:db8:f::10"
)

// iptablesService has the chains of kube-proxy in iptables mode for one Service
// with one endpoint.
const iptablesService = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-EXT-WEB - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SEP-WEB - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -d BALANCER -p tcp --dport 8443 -j KUBE-EXT-WEB
-A KUBE-SERVICES -d BALANCER -p udp --dport 8443 -j KUBE-EXT-WEB
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-EXT-WEB
-A KUBE-NODEPORTS -p udp --dport 30080 -j KUBE-EXT-WEB
-A KUBE-EXT-WEB -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-SVC-WEB -j KUBE-SEP-WEB
-A KUBE-SEP-WEB -p tcp -j DNAT --to-destination [ENDPOINT]:80
-A KUBE-SEP-WEB -p udp -j DNAT --to-destination [ENDPOINT]:53
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
`

// noIptablesService takes the jumps to them away.
const noIptablesService = `*nat
-D PREROUTING -j KUBE-SERVICES
-D OUTPUT -j KUBE-SERVICES
-D POSTROUTING -j KUBE-POSTROUTING
COMMIT
`

// nftablesService has those of kube-proxy in nftables mode.
const nftablesService = `table FAMILY kube-proxy {
	set nodeport-ips {
		type ADDRTYPE
		elements = { NODE }
	}
	map service-ips {
		type ADDRTYPE . inet_proto . inet_service : verdict
		elements = { BALANCER . tcp . 8443 : goto external-web, BALANCER . udp . 8443 : goto external-web }
	}
	map service-nodeports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 30080 : goto external-web, udp . 30080 : goto external-web }
	}
	chain nat-prerouting {
		type nat hook prerouting priority -100
		jump services
	}
	chain nat-output {
		type nat hook output priority -100
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority 100
		mark and 0x4000 == 0 return
		mark set mark xor 0x4000
		masquerade
	}
	chain services {
		FAMILY daddr . meta l4proto . th dport vmap @service-ips
		FAMILY daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
	}
	chain external-web {
		mark set mark or 0x4000
		goto service-web
	}
	chain service-web {
		numgen random mod 1 vmap { 0 : goto endpoint-web }
	}
	chain endpoint-web {
		meta l4proto tcp dnat to [ENDPOINT]:80
		meta l4proto udp dnat to [ENDPOINT]:53
	}
}
`

// Services win over hostPorts of the same number: on a node port, and on the
// address of a load balancer that the node has.
func TestServicesWinOverHostPorts(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	n.servePod(client, "porter", append(bothPorts("", nodePort), bothPorts("", balancerPort)...)...)
	endpoint4, endpoint6 := n.addresses(n.servePod(client, "endpoint"))
	for _, c := range []struct {
		place *node.Place
		args  string
	}{
		{n.Place, "addr add " + balancer4 + "/32 dev lo"},
		{n.Place, "addr add " + balancer6 + "/128 dev lo nodad"},
		{n.Outside, "route add " + balancer4 + " via " + node.NodeIPv4},
		{n.Outside, "-6 route add " + balancer6 + " via " + node.NodeIPv6},
	} {
		_, err := c.place.Run(n.ctx, "ip", strings.Fields(c.args)...)
		n.ok(err)
	}
	bystander := n.podPlace(n.runPod(client, "bystander"))
	check := func(form, want string) {
		for _, from := range []*node.Place{n.Outside, n.Place, bystander} {
			n.answers(from, node.NodeIPv4, nodePort, want)
			n.answers(from, node.NodeIPv6, nodePort, want)
			n.answers(from, balancer4, balancerPort, want)
			n.answers(from, balancer6, balancerPort, want)
		}
		if t.Failed() {
			t.Fatalf("with %s", form)
		}
	}
	v4 := strings.NewReplacer("[ENDPOINT]", endpoint4, "BALANCER", balancer4, "NODE", node.NodeIPv4,
		"FAMILY", "ip", "ADDRTYPE", "ipv4_addr")
	v6 := strings.NewReplacer("ENDPOINT", endpoint6, "BALANCER", balancer6, "NODE", node.NodeIPv6,
		"FAMILY", "ip6", "ADDRTYPE", "ipv6_addr")
	run := func(input, name string, args ...string) {
		_, err := n.RunInput(n.ctx, strings.NewReader(input), name, args...)
		n.ok(err)
	}
	check("no Service", "porter")
	run(v4.Replace(iptablesService), "iptables-nft-restore", "--noflush")
	run(v6.Replace(iptablesService), "ip6tables-nft-restore", "--noflush")
	check("kube-proxy in iptables mode", "endpoint")
	run(noIptablesService, "iptables-nft-restore", "--noflush")
	run(noIptablesService, "ip6tables-nft-restore", "--noflush")
	check("no Service any more", "porter")
	run(v4.Replace(nftablesService)+v6.Replace(nftablesService), "nft", "-f", "-")
	check("kube-proxy in nftables mode", "endpoint")
	run("delete table ip kube-proxy; delete table ip6 kube-proxy", "nft", "-f", "-")
	check("no Service at the end", "porter")
}
