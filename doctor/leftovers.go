package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni/builtin"
)

const leftoverConcern = "leftovers"

func leftoverChecks() []Check {
	return []Check{
		{Name: "stale-netns", Looks: "network namespaces in /run/netns without a process or a sandbox", Severity: Warning, run: staleNetNS,
			After: []string{"containerd-answers"}, Why: "each keeps interfaces and memory of the kernel"},
		{Name: "dead-veths", Looks: "ports of the pods' bridge that stay without carrier", Severity: Warning, run: deadVeths,
			Why: "the pod at the other end has no network, or is gone"},
		{Name: "doomed-links", Looks: "links that crinetd has cut off and did not remove", Severity: Warning, run: doomedLinks,
			After: []string{"crinetd-answers"}, Why: "they take memory of the kernel, and names"},
		{Name: "cni-cache", Looks: "entries of libcni's caches for sandboxes that nobody has", Severity: Info, run: cniCache,
			After: []string{"containerd-answers"}, Why: "they take disk space; no pod needs them"},
	}
}

func staleNetNS(ctx context.Context, n *Node) Result {
	procs, err := n.processes(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	var idle []string
	for _, name := range n.list("/run/netns") {
		var stat unix.Stat_t
		path := filepath.Join("/run/netns", name)
		// containerd's and CRI-O's names; others are other people's.
		if !strings.HasPrefix(name, "cni-") || unix.Stat(n.path(path), &stat) != nil || procs.netns[strconv.FormatUint(stat.Ino, 10)] {
			continue
		}
		idle = append(idle, path)
	}
	if len(idle) == 0 {
		return good("each of containerd's namespaces in /run/netns has a process")
	}
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return unknown("%d network namespaces have no process, and crinetd does not say whose they are", len(idle))
	}
	var stale []string
	for _, path := range idle {
		// Namespaces of virtual machines have no process but a sandbox; new ones have
		// neither yet. What is mounted there has the time of its making.
		known := false
		for _, p := range c.Pods {
			known = known || filepath.Base(p.NetNS) == filepath.Base(path)
		}
		info, err := os.Stat(n.path(path))
		if !known && err == nil && time.Since(info.ModTime()) > newFile {
			stale = append(stale, filepath.Base(path))
		}
	}
	if len(stale) == 0 {
		return good("%d network namespaces have no process but a pod", len(idle))
	}
	return bad("ip netns del "+strings.Join(stale[:min(10, len(stale))], " "), "%d network namespaces in /run/netns belong to nobody: %s", len(stale), few(stale))
}

// twice is the wait between two looks at what may pass.
const twice = 700 * time.Millisecond

// lookTwice returns the links for which is says yes in two looks.
func (n *Node) lookTwice(ctx context.Context, is func(netlink.Link) bool) ([]string, error) {
	l, err := n.askLinks(ctx)
	if err != nil {
		return nil, err
	}
	first := make(map[int]bool)
	for _, link := range l.all {
		if is(link) {
			first[link.Attrs().Index] = true
		}
	}
	if len(first) == 0 {
		return nil, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(twice):
	}
	if l, err = n.readLinks(); err != nil {
		return nil, err
	}
	var stay []string
	for _, link := range l.all {
		if first[link.Attrs().Index] && is(link) {
			stay = append(stay, link.Attrs().Name)
		}
	}
	return stay, nil
}

func deadVeths(ctx context.Context, n *Node) Result {
	l, err := n.askLinks(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	_, name, bridge := n.bridgeOf(ctx, l)
	if bridge == nil {
		return skip("there is no bridge of pods")
	}
	stay, err := n.lookTwice(ctx, func(link netlink.Link) bool {
		a := link.Attrs()
		return a.MasterIndex == bridge.Attrs().Index && a.Group != builtin.Doomed && a.OperState != netlink.OperUp && a.OperState != netlink.OperUnknown
	})
	switch {
	case err != nil:
		return unknown("%v", err)
	case len(stay) == 0:
		return good("all %d ports of %s have a carrier", len(l.ports(bridge)), name)
	}
	return bad(fmt.Sprintf("crinetctl pods names the pod; restart it; if there is none: ip link del %s", stay[0]), "%d ports of %s have no carrier: %s", len(stay), name, few(stay))
}

func doomedLinks(ctx context.Context, n *Node) Result {
	if _, err := n.askCrinetd(ctx); err != nil {
		return n.withoutCrinetd(err)
	}
	stay, err := n.lookTwice(ctx, func(link netlink.Link) bool { return link.Attrs().Group == builtin.Doomed })
	switch {
	case err != nil:
		return unknown("%v", err)
	case len(stay) == 0:
		return good("there are none")
	}
	return bad(fmt.Sprintf("ip link del group %d; journalctl -u crinetd says why crinetd does not", builtin.Doomed), "%d links are cut off and still there: %s", len(stay), few(stay))
}

func cniCache(ctx context.Context, n *Node) Result {
	var stale []string
	total := 0
	held, heldErr := n.sandboxes(ctx)
	mine := map[string]bool{"crinet": true}
	if found, err := n.confDir(ctx); err == nil {
		for _, net := range found.all {
			mine[net.Name] = true
		}
	}
	for _, dir := range []string{n.Options.CNICacheDir, n.Options.RuntimeCNICacheDir} {
		for _, name := range n.list(dir + "/results") {
			// NETWORK-CONTAINER-INTERFACE, and containers' ids have no dash.
			parts := strings.Split(name, "-")
			if len(parts) < 3 {
				continue
			}
			// The cache of the runtime is other people's too.
			if dir != n.Options.CNICacheDir && !mine[strings.Join(parts[:len(parts)-2], "-")] {
				continue
			}
			total++
			info, err := os.Stat(n.path(filepath.Join(dir, "results", name)))
			if err == nil && time.Since(info.ModTime()) > newFile && !held[parts[len(parts)-2]] {
				stale = append(stale, filepath.Join(dir, "results", name))
			}
		}
	}
	switch {
	case total == 0:
		return good("the caches are empty")
	case heldErr != nil:
		return unknown("%d entries, and nobody says whose they are: %v", total, heldErr)
	case len(stale) == 0:
		return good("each of %d entries belongs to a sandbox", total)
	}
	return bad("rm "+strings.Join(stale[:min(5, len(stale))], " "), "%d of %d entries belong to no sandbox", len(stale), total)
}
