package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"

	"github.com/crinet-project/crinet/config"
)

const firewallConcern = "firewall"

// crinetTable is the table of package hostport.
const crinetTable = "crinet"

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
		{Name: "crinet-table", Looks: "the table inet crinet: there, and with as many hostPorts as crinetd has mapped", Severity: Error, run: crinetTableStands,
			After: []string{"crinetd-ready", "kernel-nftables"}, Why: "hostPorts and masquerade of running pods do not work"},
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
		for _, link := range l.uplinks() {
			uplink = link.Attrs().Name
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
			trip{packet{bridge, uplink, pod, out, stateNew}, "from pods to the outside", Error},
			trip{packet{uplink, bridge, out, pod, stateEstablished}, "answers to pods", Error},
			trip{packet{uplink, bridge, out, pod, stateNew}, "from other nodes to pods", Warning})
	}
	return bridge, all
}

// openFor is a command that has a firewall accept the pods' packets.
func openFor(rules *ruleset, c *nftables.Chain, bridge string, v6 bool) string {
	program := "iptables"
	if v6 {
		program += " (ip6tables)"
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
	return good("%d chains at forward let pods' packets pass", seen)
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
					mend := strings.ReplaceAll(openFor(nil, nil, bridge, table.v6), "iptables -I", "iptables-legacy -I")
					return bad(mend, "iptables-legacy drops packets %s: %s", t.what, lost).at(severity)
				}
			}
		}
	}
	return good("%d tables of iptables-legacy let pods' packets pass", len(tables))
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
			if t.in != bridge || t.state != stateNew {
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
	if c.Name == "INPUT" {
		return fmt.Sprintf("iptables -I INPUT -i %s -j ACCEPT", bridge)
	}
	return fmt.Sprintf("nft insert rule %s %s %s iifname %s accept", familyName(c.Table.Family), c.Table.Name, c.Name, bridge)
}

func iptablesMix(ctx context.Context, n *Node) Result {
	rules, err := n.askRuleset(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	legacy, err := n.askLegacy(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	old := 0
	for _, t := range legacy {
		for _, all := range t.rules {
			old += len(all)
		}
	}
	if old == 0 || !rules.hasChain("FORWARD") && !rules.hasChain("POSTROUTING") {
		return good("rules are in one of them only, or in neither")
	}
	return bad("see who writes them: iptables-legacy-save and iptables-nft-save; let all use one: update-alternatives --config iptables; a reboot removes the rest",
		"iptables-legacy has %d rules, and iptables-nft has chains as well", old)
}

func firewalld(ctx context.Context, n *Node) Result {
	if !n.runs(ctx, "firewalld") {
		return skip("firewalld does not run")
	}
	if r := n.opensItself(ctx); r != nil {
		return *r
	}
	net := n.selected(ctx)
	if net == nil {
		return unknown("no network is selected")
	}
	var wanted []string
	for _, p := range net.subnets(n.podCIDRs(ctx)) {
		wanted = append(wanted, p.String())
	}
	wanted = append(wanted, net.bridges()...)
	zones := append(n.glob("/etc/firewalld/zones/*.xml"), n.glob("/etc/firewalld/policies/*.xml")...)
	if found := n.grep(zones, func(text string) bool {
		return slices.ContainsFunc(wanted, func(w string) bool { return strings.Contains(text, `"`+w+`"`) })
	}); len(found) > 0 {
		return good("the pods are in a zone of firewalld (%s)", found[0])
	}
	if len(wanted) == 0 {
		return unknown("the pods' addresses are not known")
	}
	return bad(fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", wanted[0]), "firewalld runs, and no zone has %s", few(wanted))
}

func ufw(ctx context.Context, n *Node) Result {
	if on := n.grep([]string{"/etc/ufw/ufw.conf"}, func(text string) bool { return strings.EqualFold(text, "ENABLED=yes") }); len(on) == 0 {
		return skip("ufw is not enabled")
	}
	drop := n.grep([]string{"/etc/default/ufw"}, func(text string) bool {
		return strings.HasPrefix(text, "DEFAULT_FORWARD_POLICY=") && !strings.Contains(text, "ACCEPT")
	})
	if len(drop) == 0 {
		return good("ufw is enabled and forwards")
	}
	bridge, _ := n.trips(ctx)
	rules := n.grep([]string{"/etc/ufw/user.rules", "/etc/ufw/before.rules", "/etc/ufw/after.rules"}, func(text string) bool {
		return bridge != "" && strings.Contains(text, "forward") && strings.Contains(text, " "+bridge+" ")
	})
	if len(rules) > 0 {
		return good("ufw has rules for %s (%s)", bridge, rules[0])
	}
	return bad(cmp.Or(openUFW(bridge), "set DEFAULT_FORWARD_POLICY=\"ACCEPT\" in /etc/default/ufw && ufw reload"), "ufw is enabled and drops what it is to forward (%s)", drop[0])
}

// openUFW is the command for pods at a bridge.
func openUFW(bridge string) string {
	if bridge == "" {
		return ""
	}
	return fmt.Sprintf("ufw route allow in on %s && ufw route allow out on %s", bridge, bridge)
}

func crinetTableStands(ctx context.Context, n *Node) Result {
	if !n.installed() || n.Options.Noop() || n.Options.HostPort != config.HostPortManager {
		return skip("crinetd does not map hostPorts on this node")
	}
	rules, err := n.askRuleset(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	c, crinetdErr := n.askCrinetd(ctx)
	if rules.table(nftables.TableFamilyINet, crinetTable) == nil {
		switch {
		case crinetdErr == nil && !c.Ready:
			return skip("crinetd makes the table when its network is ready")
		case crinetdErr == nil:
			return bad("systemctl restart crinetd, which makes it again; then see who flushes nftables: nft monitor", "the table inet crinet is not there, although crinetd runs")
		case !n.exists(n.Options.RunDir):
			return skip("crinetd has not run since the last boot")
		}
		return bad("systemctl start crinetd, which makes it again; then see who flushed nftables (nftables.service? firewalld?)", "the table inet crinet was removed while crinetd is not running")
	}
	want := []string{"guard", "prerouting", "output", "postrouting", "hostports"}
	for _, chain := range rules.chains {
		if chain.Table.Family == nftables.TableFamilyINet && chain.Table.Name == crinetTable {
			want = slices.DeleteFunc(want, func(name string) bool { return name == chain.Name })
		}
	}
	if len(want) > 0 {
		return bad("systemctl restart crinetd, which makes it right; somebody changes the table: nft monitor", "the table inet crinet lacks the chains %s", few(want))
	}
	return good("the table inet crinet stands")
}

// isPortmap says whether a chain is one of portmap's, kubenet's or dockershim's.
func isPortmap(name string) bool {
	for _, stem := range []string{"CNI-DN-", "CNI-SN-", "CNI-HOSTPORT-", "KUBE-HP-", "KUBE-HOSTPORTS"} {
		if strings.HasPrefix(name, stem) {
			return true
		}
	}
	return false
}

func stalePortmap(ctx context.Context, n *Node) Result {
	rules, err := n.askRuleset(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	legacy, err := n.askLegacy(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	chains, wanted := make(map[string]bool), n.mappedByPlugin(ctx)
	stale := make(map[string]bool)
	for _, c := range rules.chains {
		if strings.HasPrefix(c.Name, "CNI-DN-") || strings.HasPrefix(c.Name, "KUBE-HP-") {
			chains[c.Name] = true
			stale[c.Name] = !leadsTo(rules.rules[keyOf(c)], wanted)
		}
	}
	tool := "iptables"
	for _, t := range legacy {
		for _, name := range t.chains {
			if t.name == "nat" && (strings.HasPrefix(name, "CNI-DN-") || strings.HasPrefix(name, "KUBE-HP-")) {
				tool = "iptables-legacy"
				chains[name] = true
				stale[name] = !slices.ContainsFunc(wanted, func(a netip.Addr) bool { return strings.Contains(strings.Join(t.rules[name], " ")+":", a.String()+":") })
			}
		}
	}
	names := slices.DeleteFunc(sortedKeys(stale), func(name string) bool { return !stale[name] })
	switch {
	case len(chains) == 0:
		return good("there are none")
	case len(names) == 0:
		return good("%d chains of portmap lead to pods that run", len(chains))
	}
	if _, err := n.askCrinetd(ctx); err != nil {
		if net := n.selected(ctx); net == nil || net.has("portmap") || n.Options.HostPort == config.HostPortPlugin {
			return unknown("there are %d chains of portmap, and crinetd does not say whose they are", len(chains))
		}
	}
	return bad(fmt.Sprintf("%s -t nat -S | grep -- '-j %s' shows the rule that leads there; remove it (-D), then %s -t nat -F %s && %s -t nat -X %s", tool, names[0], tool, names[0], tool, names[0]),
		"%d chains map hostPorts for pods that are gone: %s", len(names), few(names))
}

// mappedByPlugin are the addresses of pods that run.
func (n *Node) mappedByPlugin(ctx context.Context) []netip.Addr {
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return nil
	}
	var all []netip.Addr
	for _, p := range c.Pods {
		for _, text := range p.Addresses {
			text, _, _ = strings.Cut(text, "/")
			if a, err := netip.ParseAddr(text); err == nil {
				all = append(all, a)
			}
		}
	}
	return all
}
