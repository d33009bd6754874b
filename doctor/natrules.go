package doctor

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

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
