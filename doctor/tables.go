package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"

	"github.com/crinet-project/crinet/config"
)

// crinetTable is the table of package hostport.
const crinetTable = "crinet"

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
		case !n.ranSinceBoot():
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
	if crinetdErr == nil && c.Mapped > 0 && rules.hostPorts == 0 {
		return bad("systemctl restart crinetd, which makes it right; somebody changes the table: nft monitor", "crinetd has mapped %s, and the table inet crinet has none", count(c.Mapped, "hostPort"))
	}
	return good("the table inet crinet stands, with %s", count(rules.hostPorts, "hostPort"))
}

// ipvsDevice has the addresses of Services where kube-proxy uses IPVS.
const ipvsDevice = "kube-ipvs0"

func ipvsProtected(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if l.named(ipvsDevice) == nil || n.Options.HostPort != config.HostPortManager {
		return skip("kube-proxy does not use IPVS, or crinetd does not map hostPorts")
	}
	if !slices.Contains(n.Options.HostPortProtected, ipvsDevice) {
		return bad("have --hostport-protected-interfaces="+ipvsDevice+" in "+flagsFile+" && systemctl restart crinetd",
			"kube-proxy has the Services' addresses on %s, which --hostport-protected-interfaces=%s leaves out", ipvsDevice, strings.Join(n.Options.HostPortProtected, ","))
	}
	return good("hostPorts leave the addresses on %s alone", ipvsDevice)
}

// ranSinceBoot says whether crinetd has written its journal since the node was booted.
func (n *Node) ranSinceBoot() bool {
	boot := n.grep([]string{"/proc/stat"}, func(text string) bool { return strings.HasPrefix(text, "btime ") })
	if len(boot) == 0 {
		return false
	}
	seconds, err := strconv.ParseInt(strings.TrimPrefix(boot[0].Text, "btime "), 10, 64)
	return err == nil && slices.ContainsFunc([]string{"journal.db", "journal.db.log"}, func(name string) bool {
		info, err := os.Stat(n.path(n.Options.StateDir + "/" + name))
		return err == nil && info.ModTime().After(time.Unix(seconds, 0))
	})
}

// portmapTable is the table of the plugin portmap where it uses nftables.
const portmapTable = "cni_hostport"

// isPortmap says whether a chain is one of portmap's, kubenet's or dockershim's.
func isPortmap(table, name string) bool {
	if table == portmapTable {
		return true
	}
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
	chains, wanted := make(map[string]bool), n.podAddrs(ctx)
	stale := make(map[string]bool)
	for _, c := range rules.chains {
		if strings.HasPrefix(c.Name, "CNI-DN-") || strings.HasPrefix(c.Name, "KUBE-HP-") {
			chains[c.Name] = true
			stale[c.Name] = !leadsTo(rules.rules[keyOf(c)], wanted)
		}
	}
	for _, c := range rules.chains {
		if c.Table.Name != portmapTable {
			continue
		}
		for _, rule := range rules.rules[keyOf(c)] {
			if translates(rule) && !leadsTo([]*nftables.Rule{rule}, wanted) {
				stale[portmapTable] = true
			}
		}
		chains[portmapTable] = true
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
		return good("%s of portmap, each for a pod that runs", count(len(chains), "chain"))
	}
	if _, err := n.askCrinetd(ctx); err != nil { // pods from before crinetd have such chains
		return unknown("there are chains of portmap, and crinetd does not say whose they are")
	}
	if names[0] == portmapTable {
		return bad(fmt.Sprintf("nft -a list table ip %[1]s shows the rules; nft delete rule ip %[1]s hostports handle N", portmapTable),
			"the table %s of the plugin portmap has hostPorts of pods that are gone", portmapTable)
	}
	return bad(fmt.Sprintf("%s -t nat -S | grep -- '-j %s' shows the rule that leads there; remove it (-D), then %s -t nat -F %s && %s -t nat -X %s", tool, names[0], tool, names[0], tool, names[0]),
		"%s for hostPorts of pods that are gone: %s", count(len(names), "chain"), few(names))
}

// podAddrs are the addresses of pods that run.
func (n *Node) podAddrs(ctx context.Context) []netip.Addr {
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

// leadsTo says whether rules translate to one of the addresses: by iptables' DNAT or by
// nft's.
func leadsTo(rules []*nftables.Rule, addrs []netip.Addr) bool {
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			var ip []byte
			switch e := e.(type) {
			case *expr.Target:
				ip = natTarget(e)
			case *expr.Immediate:
				ip = e.Data
			}
			if addr, ok := netip.AddrFromSlice(ip); ok && slices.Contains(addrs, addr.Unmap()) {
				return true
			}
		}
	}
	return false
}

// natTarget is the address of a target DNAT.
func natTarget(e *expr.Target) []byte {
	if e.Name != "DNAT" {
		return nil
	}
	switch info := e.Info.(type) {
	case *xt.NatRange:
		return info.MinIP
	case *xt.NatRange2:
		return info.MinIP
	case *xt.NatIPv4MultiRangeCompat:
		if len(*info) > 0 {
			return (*info)[0].MinIP
		}
	}
	return nil
}

// translates says whether a rule of nft's translates addresses.
func translates(rule *nftables.Rule) bool {
	return slices.ContainsFunc(rule.Exprs, func(e expr.Any) bool { _, ok := e.(*expr.NAT); return ok })
}
