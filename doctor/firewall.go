package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
)

const firewallConcern = "firewall"

func firewallChecks() []Check {
	return []Check{
		{Name: "forward-nft", Looks: "chains of nftables (and iptables-nft) that drop forwarded packets of pods", Severity: Error, run: forwardNFT,
			Why: "pods do not reach other nodes and the outside, or their answers do not come back"},
		{Name: "forward-legacy", Looks: "chains of iptables-legacy that drop forwarded packets of pods", Severity: Error, run: forwardLegacy,
			Why: "pods do not reach other nodes and the outside, or their answers do not come back"},
		{Name: "input-policy", Looks: "chains that drop all packets from pods to the node itself", Severity: Warning, run: inputPolicy,
			Why: "pods do not reach the node: its API server, NodeLocal DNS, hostPorts on its address"},
		{Name: "iptables-mix", Looks: "rules in iptables-legacy and in iptables-nft at once", Severity: Warning, run: iptablesMix,
			Why: "both are in force, and each program shows one half: rules that are not seen drop packets"},
		{Name: "firewalld", Looks: "firewalld, and whether the pods are in a zone that accepts", Severity: Warning, run: firewalld,
			After: []string{"forward-nft"}, Why: "firewalld rejects what no zone accepts, again after each reload"},
		{Name: "ufw", Looks: "ufw, and whether it routes pods' packets", Severity: Warning, run: ufw,
			After: []string{"forward-nft", "forward-legacy"}, Why: "ufw drops forwarded packets, again after each reload"},
		{Name: "crinet-table", Looks: "the table inet crinet: there, with its chains and the hostPorts that crinetd has mapped", Severity: Error, run: crinetTableStands,
			After: []string{"kernel-nftables"}, Why: "hostPorts and masquerade of running pods do not work"},
		{Name: "ipvs-protected", Looks: "whether hostPorts leave kube-proxy's addresses in IPVS mode alone", Severity: Error, run: ipvsProtected,
			Why: "a hostPort takes the same port of every Service on this node, such as the API server's"},
		{Name: "stale-portmap", Looks: "chains of the plugin portmap, kubenet and dockershim that nobody needs any more", Severity: Warning, run: stalePortmap,
			Why: "they take hostPorts away from new pods: connections end at addresses of pods that are gone"},
	}
}

// trip is a packet of pods, and what it is for an operator.
type trip struct {
	packet
	what     string
	severity Severity
}

// fromPods is the way of packets that pods send.
const fromPods = "from pods to the outside"

// trips are the packets of a network's pods through the node. Nothing is known where
// the pods' interfaces are not those of a bridge.
func (n *Node) trips(ctx context.Context) (bridge string, all []trip) {
	net := n.selected(ctx)
	if net == nil {
		return "", nil
	}
	if bridges := net.bridges(); len(bridges) > 0 {
		bridge = bridges[0]
	}
	uplink := ""
	if l, err := n.askLinks(ctx); err == nil {
		if up := l.uplinks(); len(up) == 1 {
			uplink = up[0].Attrs().Name
		}
	}
	v4, v6 := n.podSubnets(ctx)
	for i, subnets := range [][]netip.Prefix{v4, v6} {
		if len(subnets) == 0 {
			continue
		}
		pod := subnets[0].Addr().Next().Next()
		out := netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i])
		all = append(all,
			trip{packet{in: bridge, out: uplink, src: pod, dst: out, state: stateNew}, fromPods, Error},
			trip{packet{in: uplink, out: bridge, src: out, dst: pod, state: stateEstablished}, "answers to pods", Error},
			trip{packet{in: uplink, out: bridge, src: out, dst: pod, state: stateNew}, "from other nodes to pods", Warning})
	}
	return bridge, all
}

// openFor is a command that has a firewall accept the pods' packets.
func openFor(rules *ruleset, c *nftables.Chain, bridge string, v6 bool) string {
	program := "iptables"
	if v6 {
		program = "ip6tables"
	}
	switch {
	case bridge == "":
		return "have the chain accept the pods' addresses"
	case rules != nil && rules.hasChain("ufw-user-forward"):
		return fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", bridge, bridge)
	case rules != nil && rules.hasChain("DOCKER-USER"):
		return fmt.Sprintf("%[2]s -I DOCKER-USER -i %[1]s -j ACCEPT && %[2]s -I DOCKER-USER -o %[1]s -j ACCEPT (Docker has set the policy)", bridge, program)
	case c == nil || c.Name == "FORWARD":
		return fmt.Sprintf("%[2]s -I FORWARD -i %[1]s -j ACCEPT && %[2]s -I FORWARD -o %[1]s -j ACCEPT; and where the firewall's own rules are kept", bridge, program)
	}
	return fmt.Sprintf("nft insert rule %[1]s %[2]s %[3]s iifname %[4]s accept; nft insert rule %[1]s %[2]s %[3]s oifname %[4]s accept; and in /etc/nftables.conf",
		familyName(c.Table.Family), c.Table.Name, c.Name, bridge)
}

// familyName is a family as nft has it.
func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// opensItself says whether the network has a plugin that opens the firewall for each
// pod.
func (n *Node) opensItself(ctx context.Context) *Result {
	if net := n.selected(ctx); net != nil && net.has("firewall") {
		r := good("the network's plugin firewall opens it for each pod")
		return &r
	}
	return nil
}

func forwardNFT(ctx context.Context, n *Node) Result {
	rules, err := n.askRuleset(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if r := n.opensItself(ctx); r != nil {
		return *r
	}
	bridge, trips := n.trips(ctx)
	seen := 0
	var worst *Result
	for _, c := range rules.chains {
		if !isFilter(c) || *c.Hooknum != *nftables.ChainHookForward {
			continue
		}
		seen++
		for _, t := range trips {
			if lost := rules.lost(c, t.packet); lost != "" {
				r := bad(openFor(rules, c, bridge, t.src.Is6()), "table %s %s drops packets %s: %s", familyName(c.Table.Family), c.Table.Name, t.what, lost).at(t.severity)
				if worst == nil || t.severity == Error && worst.Outcome != Outcome(Error) {
					worst = &r
				}
			}
		}
	}
	switch {
	case worst != nil:
		return *worst
	case len(trips) == 0 && seen > 0:
		return skip("the addresses of the pods' network are not known")
	}
	return good("%s at forward, pods' packets pass", count(seen, "chain"))
}

// lost says why a base chain drops a packet; empty if it does not.
func (s *ruleset) lost(c *nftables.Chain, p packet) string {
	if c.Table.Family == nftables.TableFamilyIPv4 && !p.src.Is4() || c.Table.Family == nftables.TableFamilyIPv6 && !p.src.Is6() {
		return ""
	}
	j := &judge{rules: s, p: p}
	if j.base(c) == isLost {
		return j.culprit
	}
	return ""
}

func forwardLegacy(ctx context.Context, n *Node) Result {
	tables, err := n.askLegacy(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if r := n.opensItself(ctx); r != nil {
		return *r
	}
	bridge, trips := n.trips(ctx)
	for _, severity := range []Severity{Error, Warning} {
		for _, table := range tables {
			for _, t := range trips {
				if table.name != "filter" || t.severity != severity || t.src.Is6() != table.v6 {
					continue
				}
				if lost := table.lost("FORWARD", t.packet); lost != "" {
					mend := strings.ReplaceAll(openFor(nil, nil, bridge, table.v6), "tables -I", "tables-legacy -I")
					return bad(mend, "iptables-legacy drops packets %s: %s", t.what, lost).at(severity)
				}
			}
		}
	}
	return good("%s of iptables-legacy, pods' packets pass", count(len(tables), "table"))
}

func inputPolicy(ctx context.Context, n *Node) Result {
	rules, err := n.askRuleset(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	bridge, trips := n.trips(ctx)
	for _, c := range rules.chains {
		if !isFilter(c) || *c.Hooknum != *nftables.ChainHookInput {
			continue
		}
		for _, t := range trips {
			if t.what != fromPods {
				continue
			}
			p := packet{in: bridge, src: t.src, state: stateNew}
			if lost := rules.lost(c, p); lost != "" {
				return bad(openInput(c, bridge)+"; and where the firewall's own rules are kept",
					"table %s %s drops all packets from pods to the node: %s", familyName(c.Table.Family), c.Table.Name, lost)
			}
		}
	}
	return good("no chain at input drops all packets from pods")
}

// openInput is a command that lets pods reach the node.
func openInput(c *nftables.Chain, bridge string) string {
	switch {
	case bridge == "":
		return "have the chain accept the pods' addresses"
	case c.Name == "INPUT" && c.Table.Family == nftables.TableFamilyIPv6:
		return fmt.Sprintf("ip6tables -I INPUT -i %s -j ACCEPT", bridge)
	case c.Name == "INPUT":
		return fmt.Sprintf("iptables -I INPUT -i %s -j ACCEPT", bridge)
	}
	return fmt.Sprintf("nft insert rule %s %s %s iifname %s accept", familyName(c.Table.Family), c.Table.Name, c.Name, bridge)
}
