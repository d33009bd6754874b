package hostport

import (
	"github.com/google/nftables"

	"github.com/crinet-project/crinet/hostport/kernel"
)

const tableName = "crinet"

const (
	// setRouteLocalnet holds the interfaces on which route_localnet is on because of
	// hostPorts: those on which pods need it, and those on which crinet switched it on
	// and has not switched it off yet.
	setRouteLocalnet = "route_localnet"
	// setSameLink holds the interfaces that lead to pods, each as a pair with itself.
	setSameLink = "same_link"
)

// Priorities, after linux/netfilter_ipv4.h. Service rules stand at dstnat, and the
// first translation of a connection wins: those of hostPorts come after them.
const (
	priorityGuard  = nftables.ChainPriority(-300) // raw: before connection tracking
	priorityDstNAT = nftables.ChainPriority(-100 + 10)
	prioritySrcNAT = nftables.ChainPriority(100)
)

// newLayout is the table of the package comment, without elements.
func newLayout() *kernel.Layout {
	l := kernel.NewLayout(tableName)
	addSets(l)
	l.Branch(branchOutside, outsideRules)
	l.BaseChain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityGuard)
	l.BaseChain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDstNAT)
	l.BaseChain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityDstNAT)
	l.BaseChain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySrcNAT)
	l.Chain("hostports")

	v4, v6 := kernel.IPv4(), kernel.IPv6()
	const cve = "CVE-2020-8558: 127.0.0.0/8 is the node's own"
	l.Rule("guard", cve, l.InputInSet(setRouteLocalnet), v4.SourceIn(v4.Loopback), kernel.Drop())
	l.Rule("guard", cve, l.InputInSet(setRouteLocalnet), v4.DestinationIn(v4.Loopback), kernel.Drop())

	for _, f := range families() {
		l.Rule("prerouting", "for the node's own processes only", f.DestinationIn(f.Loopback), kernel.Return())
	}
	l.Rule("prerouting", "", kernel.LocalDestination(), kernel.Jump("hostports"))
	l.Rule("output", "the kernel routes ::1 to itself only",
		v6.SourceIn(v6.Loopback), v6.DestinationIn(v6.Loopback), kernel.Return())
	l.Rule("output", "", kernel.LocalDestination(), kernel.Jump("hostports"))

	for _, f := range families() {
		l.Rule("hostports", "addresses of Services", f.DestinationInSet(l, f.protected), kernel.Return())
	}
	for _, f := range families() {
		l.Rule("hostports", "", f.Translate(l, f.addrPorts, true))
		l.Rule("hostports", "", f.Translate(l, f.ports, false))
		l.Rule("postrouting", "a pod that reaches itself through its hostPort",
			kernel.Translated(), f.AddressesInSet(l, f.hairpin), kernel.Masquerade())
	}
	l.Rule("postrouting", "pods that would answer each other past the node",
		kernel.Translated(), l.InterfacesInSet(setSameLink), kernel.Masquerade())
	l.Rule("postrouting", "127.0.0.0/8 cannot leave the node",
		kernel.Translated(), kernel.OutputNot("lo"), v4.SourceIn(v4.Loopback), kernel.Masquerade())
	for _, f := range families() {
		l.Rule("postrouting", "", f.SourceVerdict(l, f.masquerade))
	}
	return l
}

func addSets(l *kernel.Layout) {
	service := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	for _, f := range families() {
		addr := nftables.TypeIPAddr
		if f.Any.Is6() {
			addr = nftables.TypeIP6Addr
		}
		target := []nftables.SetDatatype{addr, nftables.TypeInetService}
		l.Map(f.ports, service, target)
		l.Map(f.addrPorts, append([]nftables.SetDatatype{addr}, service...), target)
		l.Set(f.hairpin, "", addr, addr)
		l.Set(f.protected, "", addr)
		l.VerdictMap(f.masquerade, addr)
	}
	l.Set(setRouteLocalnet, "", nftables.TypeIFName)
	l.Set(setSameLink, "", nftables.TypeIFName, nftables.TypeIFName)
}
