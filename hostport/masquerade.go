package hostport

import (
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// branchOutside is the kind of chains that masquerade what goes outside of a subnet:
// one for each subnet that masqueraded pods are in.
const branchOutside = "outside"

// subnetName is the subnet as part of a chain's name, which cannot have colons.
func subnetName(subnet netip.Prefix) string { return strings.ReplaceAll(subnet.String(), ":", "_") }

// outsideRules are the rules of the chain for a subnet: what stays in it keeps the
// pod's address, and so does multicast, as with the reference plugins' ipMasq. They
// are nil if the argument is no subnet that [need.addMasquerade] names.
func outsideRules(argument string) [][]expr.Any {
	subnet, err := netip.ParsePrefix(strings.ReplaceAll(argument, "_", ":"))
	if err != nil || subnet != subnet.Masked() || subnetName(subnet) != argument {
		return nil
	}
	for _, f := range families() {
		if f.Has(subnet.Addr()) {
			return [][]expr.Any{
				append(f.DestinationIn(subnet), kernel.Return()...),
				append(f.DestinationIn(f.Multicast), kernel.Return()...),
				kernel.Masquerade(),
			}
		}
	}
	return nil // such as an IPv4 address in the form of an IPv6 one
}

// addMasquerade adds what it takes that connections of the pod's addresses leave
// their subnets with an address of the node. Addresses are shared because that of a
// pod that is being removed may be another's already.
func (n *need) addMasquerade(addresses []netip.Prefix, comment string) {
	for _, address := range addresses {
		ip := address.Addr().Unmap().WithZone("")
		for _, f := range families() {
			if !f.Has(ip) {
				continue
			}
			subnet := subnetName(netip.PrefixFrom(ip, address.Bits()).Masked())
			n.shared = append(n.shared,
				kernel.Element{Key: kernel.Key{Set: branchOutside, Bytes: subnet}},
				kernel.Element{
					Key:   kernel.Key{Set: f.masquerade, Bytes: string(ip.AsSlice())},
					Value: kernel.BranchChain(branchOutside, subnet), Comment: comment,
				})
		}
	}
}
