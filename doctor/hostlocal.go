package doctor

import (
	"cmp"
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/crinet-project/crinet/internal/dirs"
)

const hostLocalDir = "/var/lib/cni/networks"

// newFile is the age below which an address may belong to a pod that is being started,
// which nobody lists yet.
const newFile = 5 * time.Minute

func hostLocalChecks() []Check {
	return []Check{
		{Name: "host-local-space", Looks: "free addresses in the ranges of host-local", Severity: Error, run: hostLocalSpace,
			After: []string{"conf-dir", "conf-files", "network-plugin", "pod-cidr"}, Why: "when all are taken, every new pod fails"},
		{Name: "host-local-leaks", Looks: "addresses that host-local holds for sandboxes that nobody has", Severity: Warning, run: hostLocalLeaks,
			After: []string{"conf-dir", "conf-files", "network-plugin", "containerd-answers"}, Why: "the addresses are lost, until the range is exhausted"},
	}
}

// reservation is an address that host-local has given away.
type reservation struct {
	addr netip.Addr
	id   string // of the sandbox
	path string
	age  time.Duration
}

func (r reservation) String() string {
	if r.id == "" {
		return r.addr.String() + " (an empty file: an ADD was killed, or somebody keeps it)"
	}
	return fmt.Sprintf("%s (sandbox %.13s)", r.addr, r.id)
}

// reservations reads what host-local has given away in a network.
func (n *Node) reservations(dir string) ([]reservation, error) {
	entries, err := dirs.List(n.path(dir))
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []reservation
	for _, e := range entries {
		addr, err := netip.ParseAddr(strings.ReplaceAll(e.Name(), "_", ":"))
		if err != nil {
			continue // the lock, the last address
		}
		path := filepath.Join(dir, e.Name())
		text, err := n.read(path)
		info, statErr := os.Stat(n.path(path))
		if err != nil || statErr != nil {
			continue // given back meanwhile
		}
		id, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
		all = append(all, reservation{addr, strings.TrimSpace(id), path, time.Since(info.ModTime())})
	}
	return all, nil
}

// store is where host-local keeps the addresses of a network.
func (p *plugin) store(network string) string {
	return filepath.Join(cmp.Or(p.IPAM.DataDir, hostLocalDir), network)
}

// hostLocals are the plugins of the selected network that have addresses of host-local.
func (n *Node) hostLocals(ctx context.Context) (net *network, plugins []plugin) {
	net = n.selected(ctx)
	if net == nil {
		return nil, nil
	}
	for _, p := range net.interfaces() {
		if p.IPAM.Type == "host-local" {
			plugins = append(plugins, p)
		}
	}
	return net, plugins
}

// bounds are the first and the last address of a range, as host-local takes them
// (plugins/ipam/host-local/backend/allocator, Range.Canonicalize).
func (r addrRange) bounds() (first, last, gateway netip.Addr, ok bool) {
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return first, last, gateway, false
	}
	subnet = subnet.Masked()
	first = subnet.Addr().Next()
	gateway = first
	bytes := subnet.Addr().AsSlice()
	for i := range subnet.Addr().BitLen() - subnet.Bits() {
		bytes[len(bytes)-1-i/8] |= 1 << (i % 8)
	}
	last, _ = netip.AddrFromSlice(bytes)
	if last.Is4() {
		last = last.Prev() // the broadcast address
	}
	if a, err := netip.ParseAddr(r.Start); err == nil {
		first = a
	}
	if a, err := netip.ParseAddr(r.End); err == nil {
		last = a
	}
	if a, err := netip.ParseAddr(r.Gateway); err == nil {
		gateway = a
	}
	return first, last, gateway, first.IsValid() && last.IsValid() && first.Compare(last) <= 0
}

// usage counts the addresses of a set of ranges: all that can be given, and those that
// are.
func usage(set []addrRange, taken []reservation) (total *big.Int, used int) {
	total = new(big.Int)
	for _, r := range set {
		first, last, gateway, ok := r.bounds()
		if !ok {
			continue
		}
		size := new(big.Int).Sub(new(big.Int).SetBytes(last.AsSlice()), new(big.Int).SetBytes(first.AsSlice()))
		total.Add(total, size.Add(size, big.NewInt(1)))
		within := func(a netip.Addr) bool {
			return a.Is4() == first.Is4() && a.Compare(first) >= 0 && a.Compare(last) <= 0
		}
		if within(gateway) {
			total.Sub(total, big.NewInt(1))
		}
		for _, t := range taken {
			if within(t.addr) && t.addr != gateway {
				used++
			}
		}
	}
	return total, used
}

func hostLocalSpace(ctx context.Context, n *Node) Result {
	net, plugins := n.hostLocals(ctx)
	if len(plugins) == 0 {
		return skip("the selected network has no addresses of host-local")
	}
	found := ""
	for _, p := range plugins {
		dir := p.store(net.Name)
		taken, err := n.reservations(dir)
		if err != nil {
			return unknown("%v", err)
		}
		sets := p.rangeSets(n.podCIDRs(ctx))
		if len(sets) == 0 {
			return unknown("the node's pod CIDR is not known, from which %s has its addresses", net.Name)
		}
		for _, set := range sets {
			total, used := usage(set, taken)
			left := new(big.Int).Sub(total, big.NewInt(int64(used)))
			what := fmt.Sprintf("%d of %s addresses of %s are taken", used, total, set[0].Subnet)
			mend := fmt.Sprintf("a larger or second range in %s; or free those that leaked: crinetctl doctor --check host-local-leaks", net.File)
			switch {
			case left.Sign() <= 0:
				return bad(mend, "%s: %s, none is left", net.Name, what)
			case new(big.Int).Mul(left, big.NewInt(20)).Cmp(total) < 0:
				return bad(mend, "%s: %s, %s are left", net.Name, what, left).at(Warning)
			}
			found = what
		}
	}
	return good("%s: %s", net.Name, found)
}

func hostLocalLeaks(ctx context.Context, n *Node) Result {
	net, plugins := n.hostLocals(ctx)
	if len(plugins) == 0 {
		return skip("the selected network has no addresses of host-local")
	}
	var leaked []reservation
	dir, all := "", 0
	for _, p := range plugins {
		dir = p.store(net.Name)
		taken, err := n.reservations(dir)
		if err != nil {
			return unknown("%v", err)
		}
		all += len(taken)
		if len(taken) == 0 {
			continue
		}
		held, err := n.sandboxes(ctx)
		if err != nil {
			return unknown("%s taken, and nobody says by whom: %v", count(len(taken), "address"), err)
		}
		for _, t := range taken {
			if !held[t.id] && t.age > newFile {
				leaked = append(leaked, t)
			}
		}
	}
	if len(leaked) == 0 {
		return good("%s held, each by a sandbox that is known", count(all, "address"))
	}
	var names, paths []string
	for _, t := range leaked {
		names = append(names, t.String())
		paths = append(paths, t.path)
	}
	const most = 10 // in one command
	return bad("rm "+strings.Join(paths[:min(most, len(paths))], " "), "%s of %s held for sandboxes that neither crinetd nor the runtime has: %s", count(len(leaked), "address"), net.Name, few(names))
}

// sandboxes are the ids of those that the runtime or crinetd has. The runtime must
// answer: crinetd alone does not know pods that others have networked.
func (n *Node) sandboxes(ctx context.Context) (map[string]bool, error) {
	held := make(map[string]bool)
	r, err := n.askRuntime(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range r.Sandboxes {
		held[id] = true
	}
	if c, err := n.askCrinetd(ctx); err == nil {
		for _, p := range c.Pods {
			held[p.Sandbox] = true
		}
	}
	return held, nil
}
