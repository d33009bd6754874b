package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/config"
)

// KernelConcern is the concern of the kernel checks.
const KernelConcern = "kernel"

func kernelChecks() []Check {
	return []Check{
		{Name: "kernel-nftables", Looks: "nf_tables with nat, fib and maps, tried in a network namespace of the check's own", Severity: Error, run: kernelNFTables,
			Why: "crinetd cannot map hostPorts nor masquerade"},
		{Name: "kernel-veth", Looks: "veth pairs, tried in a network namespace of the check's own", Severity: Error, run: kernelVeth,
			Why: "no pod can be connected to the node"},
		{Name: "kernel-bridge", Looks: "bridges, tried in a network namespace of the check's own", Severity: Error, run: kernelBridge,
			Why: "the plugin bridge cannot make the pods' bridge"},
		{Name: "kernel-conntrack", Looks: "conntrack's netlink interface, tried in a network namespace of the check's own", Severity: Warning, run: kernelConntrack,
			Why: "UDP flows stick to pods that are gone"},
		{Name: "security-modules", Looks: "SELinux and AppArmor", Severity: Info, run: securityModules,
			Why: "where a plugin's access is denied, the reason is in the audit log only: ausearch -m avc, dmesg"},
	}
}

// kernelTrial is what the kernel could do in an empty network namespace.
type kernelTrial struct{ nft, veth, bridge, conntrack error }

// askKernel tries what crinetd and its plugins need of the kernel.
func (n *Node) askKernel(ctx context.Context) (*kernelTrial, error) {
	if !n.Live {
		return nil, errNotLive
	}
	return n.trial.get(ctx, func(context.Context) (*kernelTrial, error) { return tryKernel() })
}

// tryKernel tries it on a thread in a network namespace of its own, both of which end
// with it.
func tryKernel() (*kernelTrial, error) {
	done := make(chan error, 1)
	trial := &kernelTrial{}
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace (are you root?): %w", err)
			return
		}
		done <- trial.fill()
	}()
	return trial, <-done
}

// fill tries all in the thread's namespace.
func (t *kernelTrial) fill() error {
	ns, err := netns.Get()
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "doctor0"
	t.veth = h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "doctor1"})
	attrs.Name = "doctor2"
	t.bridge = h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	t.nft = tryNFTables(int(ns))
	if ct, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER); err != nil {
		t.conntrack = err
	} else {
		_, t.conntrack = ct.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		ct.Close()
	}
	return nil
}

// tryNFTables makes a table with what hostPorts need: a nat chain in an inet table, a
// rule that asks fib, and one that translates by a map.
func tryNFTables(ns int) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "doctor", Family: nftables.TableFamilyINet})
	ports := &nftables.Set{Table: table, ID: 1, Name: "ports", IsMap: true, KeyType: nftables.TypeInetService, DataType: nftables.TypeIPAddr}
	if err := c.AddSet(ports, nil); err != nil {
		return err
	}
	chain := c.AddChain(&nftables.Chain{Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.RTN_LOCAL, 0, 0, 0}},
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: ports.Name, SetID: ports.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	return c.Flush()
}

// uname is the running kernel's release.
func (n *Node) uname() string {
	text, err := n.sysctl("kernel/osrelease")
	if err != nil {
		return ""
	}
	return text
}

// moduleState says whether a module is loaded, built in, or can be loaded.
func (n *Node) moduleState(_ context.Context, name string) string {
	release := n.uname()
	file := "/" + name + ".ko"
	if n.exists("/sys/module/" + name) {
		return "it is loaded or built in"
	}
	has := func(list string) bool {
		for _, dir := range []string{"/lib/modules/", "/usr/lib/modules/"} {
			if len(n.grep([]string{dir + release + "/" + list}, func(l string) bool { return strings.Contains(l, file) })) > 0 {
				return true
			}
		}
		return false
	}
	switch {
	case has("modules.builtin"):
		return "it is built in"
	case has("modules.dep"):
		return "it can be loaded"
	case !n.exists(filepath.Join("/lib/modules", release)):
		return "/lib/modules/" + release + " is not there: was the kernel's package removed or upgraded without a reboot?"
	}
	return "the kernel " + release + " has no such module"
}

// kernelResult is the result for one thing that was tried.
func (n *Node) kernelResult(ctx context.Context, what string, modules []string, tried func(*kernelTrial) error) Result {
	trial, err := n.askKernel(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	err = tried(trial)
	switch {
	case err == nil:
		return good("the kernel %s can do %s", n.uname(), what)
	case errors.Is(err, os.ErrPermission):
		return unknown("it may not be tried: %v", err)
	}
	var states []string
	for _, m := range modules {
		states = append(states, m+": "+n.moduleState(ctx, m))
	}
	return bad("modprobe -a "+strings.Join(modules, " ")+" && printf '%s\\n' "+strings.Join(modules, " ")+" >/etc/modules-load.d/crinet.conf",
		"the kernel %s cannot do %s: %v (%s)", n.uname(), what, err, strings.Join(states, "; "))
}

func kernelNFTables(ctx context.Context, n *Node) Result {
	if n.Options.HostPort != config.HostPortManager {
		return skip("crinetd does not map hostPorts (--hostport=%s)", n.Options.HostPort)
	}
	return n.kernelResult(ctx, "nftables with nat, fib and maps", []string{"nf_tables", "nft_chain_nat", "nft_fib_inet"}, func(t *kernelTrial) error { return t.nft })
}

func kernelVeth(ctx context.Context, n *Node) Result {
	return n.kernelResult(ctx, "veth pairs", []string{"veth"}, func(t *kernelTrial) error { return t.veth })
}

func kernelBridge(ctx context.Context, n *Node) Result {
	net := n.selected(ctx)
	if net != nil && len(net.bridges()) == 0 {
		return skip("the pods' network has no Linux bridge")
	}
	return n.kernelResult(ctx, "bridges", []string{"bridge"}, func(t *kernelTrial) error { return t.bridge })
}

func kernelConntrack(ctx context.Context, n *Node) Result {
	return n.kernelResult(ctx, "conntrack over netlink", []string{"nf_conntrack_netlink"}, func(t *kernelTrial) error { return t.conntrack })
}

func securityModules(_ context.Context, n *Node) Result {
	var on []string
	if mode, err := n.read("/sys/fs/selinux/enforce"); err == nil && strings.TrimSpace(mode) == "1" {
		on = append(on, "SELinux is enforcing")
	}
	if mode, err := n.read("/sys/module/apparmor/parameters/enabled"); err == nil && strings.TrimSpace(mode) == "Y" {
		on = append(on, "AppArmor is enabled")
	}
	if len(on) == 0 {
		return good("neither SELinux nor AppArmor is in force")
	}
	return good("%s", strings.Join(on, ", "))
}
