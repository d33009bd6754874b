package kernel

import (
	"errors"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// feature is something of nftables that kernels are built without, or had no
// support for at first. They refuse it with "no such file or directory".
type feature struct {
	// name says what it is, and what provides it.
	name string
	// chain is the type of the chain in which rule is tried.
	chain nftables.ChainType
	hook  *nftables.ChainHook
	rule  []expr.Any
}

// features lists what the table needs, so that what depends on another comes after it.
func features() []feature {
	nat, pre, post := nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainHookPostrouting
	filter := nftables.ChainTypeFilter
	natTo := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg1}
	load := IPv4().load(IPv4().dstOffset(), reg1)
	return []feature{
		{"nftables with inet tables (Linux 3.14, CONFIG_NF_TABLES_INET)", filter, pre, nil},
		{"NAT chains in inet tables (Linux 5.2, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT)", nat, pre, nil},
		{"the nftables expression fib (CONFIG_NFT_FIB_INET, module nft_fib_inet)", filter, pre, LocalDestination()},
		{"the nftables expression ct (CONFIG_NFT_CT, module nft_ct)", filter, pre, Translated()},
		{"the nftables expression dnat in inet tables (Linux 5.2, CONFIG_NFT_NAT, module nft_nat)", nat, pre, []expr.Any{load, natTo}},
		{"the nftables expression masquerade in inet tables (Linux 5.2, CONFIG_NFT_MASQ, module nft_masq)", nat, post, Masquerade()},
	}
}

// firstMissing returns the name of the first feature that is lacking, "" if all are
// there.
func firstMissing(all []feature, lacks func(feature) bool) string {
	for _, f := range all {
		if lacks(f) {
			return f.name
		}
	}
	return ""
}

// lacks tries a feature in a transaction that leaves nothing behind: its table is
// added and deleted in it.
func (c *tableConn) lacks(f feature) bool {
	table := &nftables.Table{Name: c.layout.name + "-probe", Family: nftables.TableFamilyINet}
	priority := *nftables.ChainPriorityFilter
	chain := &nftables.Chain{Name: "probe", Table: table, Type: f.chain, Hooknum: f.hook, Priority: &priority}
	err := c.commit(func(conn *nftables.Conn) error {
		conn.AddTable(table)
		conn.AddChain(chain)
		if f.rule != nil {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: f.rule})
		}
		conn.DelTable(table)
		return nil
	})
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP)
}
