package headroom

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"

	"github.com/crinet-project/crinet/cni"
)

// Many is the most that a count says: ranges of IPv6 have more addresses than anybody
// counts. It is the largest number that JSON and metrics carry exactly.
const Many = 1 << 53

// defaultDataDir is host-local's.
const defaultDataDir = "/var/lib/cni/networks"

// Range is one range of a network as it was counted last. Used, Free, Leaked and
// Reserved add up to Size, where that is below [Many].
type Range struct {
	Network string
	// Range is the subnet (10.0.0.0/24), or with limits of its own the first and
	// the last address (10.0.0.10-10.0.0.99).
	Range string
	// Set is the range's place among the network's: a pod gets an address of each
	// set, from any range of the set.
	Set int
	// Selected says that new pods get addresses from it; otherwise it is a range of
	// pods that run.
	Selected bool
	// Dir is where host-local keeps the files of its addresses.
	Dir string
	// Size is how many addresses the subnet has, Many at most. Reserved are those
	// that no pod gets: network, broadcast, gateway, and what the limits exclude.
	Size, Reserved uint64
	// Used are those of sandboxes that somebody knows, Leaked those of no sandbox,
	// Free the rest.
	Used, Free, Leaked uint64
	// Leaks are some of the leaked addresses.
	Leaks []Leak
	// Problem says why the numbers may be wrong; empty if they are not.
	Problem string

	first, last, gateway netip.Addr
}

// Leak is an address that nobody will free.
type Leak struct {
	Address netip.Addr
	// Container is what the file says whose it is. It is somebody else's text.
	Container string
	File      string
}

// Usable is how many addresses pods can get, Many at most.
func (r *Range) Usable() uint64 { return r.Size - r.Reserved }

// contains says whether host-local gives an address out from the range.
func (r *Range) contains(a netip.Addr) bool {
	return a.BitLen() == r.first.BitLen() && !a.Less(r.first) && !r.last.Less(a) && a != r.gateway
}

// rangesOf returns the ranges of an attachment's network, not yet counted.
func rangesOf(a *cni.Attachment) ([]Range, error) {
	configs, err := a.HostLocal()
	if err != nil {
		return nil, err
	}
	var all []Range
	for _, config := range configs {
		found, err := rangesIn(a.Network, config, len(all))
		if err != nil {
			return nil, fmt.Errorf("network %q: host-local: %w", a.Network, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// rangesIn returns the ranges that a configuration of host-local has, with sets that
// are numbered from firstSet on.
func rangesIn(network string, config json.RawMessage, firstSet int) ([]Range, error) {
	ipam, _, err := allocator.LoadIPAMConfig(config, "")
	if err != nil {
		return nil, err
	}
	if ipam.Name == "" || ipam.Name != filepath.Base(ipam.Name) || ipam.Name == "." || ipam.Name == ".." {
		return nil, fmt.Errorf("%q is no name of a folder", ipam.Name)
	}
	dir := filepath.Join(cmp.Or(ipam.DataDir, defaultDataDir), ipam.Name)
	var all []Range
	for i, set := range ipam.Ranges {
		for j := range set {
			all = append(all, newRange(network, dir, firstSet+i, &set[j]))
		}
	}
	return all, nil
}

// newRange takes over a range that the reference's package has completed.
func newRange(network, dir string, set int, theirs *allocator.Range) Range {
	r := Range{
		Network: network, Dir: dir, Set: set,
		first: address(theirs.RangeStart), last: address(theirs.RangeEnd), gateway: address(theirs.Gateway),
	}
	subnet := net.IPNet(theirs.Subnet)
	ones, bits := subnet.Mask.Size()
	whole := allocator.Range{Subnet: theirs.Subnet}
	r.Range = subnet.String()
	if whole.Canonicalize() != nil || !whole.RangeStart.Equal(theirs.RangeStart) || !whole.RangeEnd.Equal(theirs.RangeEnd) {
		r.Range = r.first.String() + "-" + r.last.String()
	}
	size := new(big.Int).Lsh(big.NewInt(1), uint(bits-ones))
	usable := new(big.Int).Sub(number(r.last), number(r.first))
	usable.Add(usable, big.NewInt(1))
	if !r.first.IsValid() || usable.Sign() < 0 {
		usable.SetInt64(0) // the last is before the first: host-local gives nothing out
	} else if !r.gateway.Less(r.first) && !r.last.Less(r.gateway) {
		usable.Sub(usable, big.NewInt(1))
	}
	r.Size = saturated(size)
	r.Reserved = r.Size - min(r.Size, saturated(usable))
	return r
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// saturated returns a number, or Many for a larger one.
func saturated(n *big.Int) uint64 {
	if !n.IsUint64() {
		return Many
	}
	return min(n.Uint64(), Many)
}
