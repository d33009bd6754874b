package doctor

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

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
	if zone := n.defaultZone(); zone != "" {
		return bad(fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", wanted[0]),
			"firewalld runs, and no zone has %s: they are in the default zone, which forwards (%s)", few(wanted), zone).
			at(Info).because("pods reach only those ports of the node that the default zone opens")
	}
	return bad(fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", wanted[0]), "firewalld runs, and no zone has %s", few(wanted))
}

// defaultZone returns the file of firewalld's default zone if that forwards between its
// interfaces.
func (n *Node) defaultZone() string {
	zone := "public"
	for _, l := range n.grep([]string{"/etc/firewalld/firewalld.conf"}, func(text string) bool { return strings.HasPrefix(text, "DefaultZone=") }) {
		zone = filepath.Base(strings.TrimPrefix(l.Text, "DefaultZone="))
	}
	for _, dir := range []string{"/etc/firewalld/zones/", "/usr/lib/firewalld/zones/"} {
		if file := dir + zone + ".xml"; n.exists(file) {
			if len(n.grep([]string{file}, func(text string) bool { return strings.Contains(text, "<forward/>") })) > 0 {
				return file
			}
			return ""
		}
	}
	return ""
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
