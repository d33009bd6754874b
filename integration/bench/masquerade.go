package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/crinet-project/crinet/hostport"
)

// masqPods are the pods on the node. The measured one came last.
var masqPods = []int{10, 1000}

// masqLimit is of the rate with few pods.
const masqLimit = 0.95

// How the pods of a node are masqueraded.
const (
	bySet    = "crinetd, elements of a set"
	byChains = "the reference plugins, an iptables chain a pod"
)

// masqNode is a node whose pods are masqueraded, one of them, and a server outside.
type masqNode struct {
	by      string
	pods    int
	server  netPort
	pod     *os.File // its network namespace
	rates   []float64
	closers []func() error
}

// measureMasquerade makes connections from a pod to the outside, on nodes that differ
// in who masquerades, and in the number of pods.
func measureMasquerade(ctx context.Context, o options, out io.Writer) (err error) {
	var nodes []*masqNode
	defer func() {
		for _, n := range nodes {
			for _, done := range n.closers {
				err = errors.Join(err, done())
			}
		}
	}()
	for _, by := range []string{bySet, byChains} {
		for _, pods := range masqPods {
			n := &masqNode{by: by, pods: pods}
			nodes = append(nodes, n)
			if err := n.start(ctx); err != nil {
				return fmt.Errorf("%s, %d pods: %w", by, pods, err)
			}
		}
	}
	for round := range 1 + max(o.portRounds, 2) {
		for _, n := range nodes {
			rate, err := n.connect(ctx)
			if err != nil {
				return fmt.Errorf("%s, %d pods: %w", n.by, n.pods, err)
			}
			if round > 0 {
				n.rates = append(n.rates, rate)
			}
		}
	}
	return masqTable(nodes).print(out)
}

// masqTable has a row for each way; the nodes of a way follow each other.
func masqTable(nodes []*masqNode) *grid {
	g := &grid{head: []string{
		"masqueraded connections per second, by", fmt.Sprintf("%d pods", masqPods[0]), fmt.Sprintf("%d pods", masqPods[1]),
		"ratio", "target", "reached",
	}}
	for i := 0; i < len(nodes); i += 2 {
		few, many := nodes[i].rates, nodes[i+1].rates
		ratios := ratiosOf(many, few)
		low, high := quartiles(ratios)
		target, reached := "", ""
		if nodes[i].by == bySet {
			target, reached = fmt.Sprintf("≥ × %.2f", masqLimit), verdict(median(ratios) < masqLimit)
		}
		g.add(nodes[i].by, fmt.Sprintf("%.0f", median(few)), fmt.Sprintf("%.0f", median(many)),
			fmt.Sprintf("× %.3f (%.3f to %.3f)", median(ratios), low, high), target, reached)
	}
	return g
}

// Addresses of a masqNode. Pods have 10.20.0.2 and those that follow.
const (
	masqServer  = "198.51.100.1"
	masqAddress = "198.51.100.2"
	masqSubnet  = "10.20.0.0/16"
)

// start makes the namespaces, the server and the rules.
func (n *masqNode) start(ctx context.Context) error {
	spaces := make([]*os.File, 3)
	for i := range spaces {
		ns, err := newNetNS()
		if err != nil {
			return err
		}
		spaces[i] = ns
		n.closers = append(n.closers, ns.Close)
	}
	outside, inside := spaces[0], spaces[1]
	n.pod = spaces[2]
	last := podAddress(n.pods - 1)
	script := fmt.Sprintf(`set -e
		ip link add uplink type veth peer name eth0 netns %[1]s
		ip link add pods type veth peer name eth0 netns %[2]s
		ip addr add %[3]s/24 dev uplink; ip addr add 10.20.0.1/16 dev pods
		ip link set uplink up; ip link set pods up; ip link set lo up
		sysctl -qw net.ipv4.ip_forward=1
		nsenter --net=%[1]s sh -c 'ip addr add %[4]s/24 dev eth0; ip link set eth0 up'
		nsenter --net=%[2]s sh -c 'ip addr add %[5]s/16 dev eth0; ip link set eth0 up; ip route add default via 10.20.0.1'`,
		fdPath(outside), fdPath(n.pod), masqAddress, masqServer, last)
	if err := runIn(ctx, inside, "", "sh", "-c", script); err != nil {
		return err
	}
	if err := n.masquerade(ctx, inside); err != nil {
		return err
	}
	// Connections are reset; what is left of them should not fill the table.
	if err := runIn(ctx, inside, "", "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1"); err != nil {
		return err
	}
	return n.serve(outside)
}

func podAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 20, byte((i + 2) >> 8), byte(i + 2)})
}

// fdPath is where commands find a namespace.
func fdPath(ns *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }

// runIn runs a command in a network namespace.
func runIn(ctx context.Context, ns *os.File, stdin, name string, args ...string) error {
	return inNetNS(fdPath(ns), func() error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	})
}

// masquerade does what crinetd does for all pods, or what the reference plugins do:
// a chain for each pod, and a rule that leads to it (their package ip, SetupIPMasq).
func (n *masqNode) masquerade(ctx context.Context, ns *os.File) error {
	if n.by == byChains {
		var rules strings.Builder
		rules.WriteString("*nat\n")
		for i := range n.pods {
			chain := fmt.Sprintf("CNI-%024x", i)
			fmt.Fprintf(&rules, ":%[1]s - [0:0]\n-A %[1]s -d %[2]s -j ACCEPT\n-A %[1]s ! -d 224.0.0.0/4 -j MASQUERADE\n-A POSTROUTING -s %[3]s -j %[1]s\n",
				chain, masqSubnet, podAddress(i))
		}
		rules.WriteString("COMMIT\n")
		return runIn(ctx, ns, rules.String(), "iptables-restore", "--noflush")
	}
	m, err := hostport.New(hostport.Config{Log: slog.New(slog.DiscardHandler), NetNS: int(ns.Fd())})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, m.Close)
	var pods []hostport.Pod
	for i := range n.pods {
		name := fmt.Sprintf("pod-%d", i)
		ip := podAddress(i)
		pods = append(pods, hostport.Pod{
			SandboxID: name, Namespace: "default", Name: name, UID: name,
			IPs: []netip.Addr{ip}, Masquerade: []netip.Prefix{netip.PrefixFrom(ip, netip.MustParsePrefix(masqSubnet).Bits())},
		})
	}
	return m.Sync(ctx, pods)
}

// serve answers connections that come from the node's address by closing them.
func (n *masqNode) serve(outside *os.File) error {
	var listener net.Listener
	err := inNetNS(fdPath(outside), func() (err error) {
		listener, err = net.Listen("tcp4", fmt.Sprintf(":%d", serverPort))
		return err
	})
	if err != nil {
		return fmt.Errorf("listen outside: %w", err)
	}
	n.closers = append(n.closers, listener.Close)
	n.server = netPort{Port: serverPort}
	copy(n.server.Addr[:], net.ParseIP(masqServer).To4())
	for range 2 {
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return // the listener was closed
				}
				tcp, ok := conn.(*net.TCPConn)
				if ok && conn.RemoteAddr().(*net.TCPAddr).IP.String() != masqAddress {
					_ = tcp.SetLinger(0) // the client sees a reset, and fails
				}
				_ = conn.Close()
			}
		}()
	}
	return nil
}

// connect makes connections from the pod for a slice of time.
func (n *masqNode) connect(ctx context.Context) (perSecond float64, err error) {
	made := make([]int, clients)
	start := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i := range clients {
		group.Go(func() error {
			return inNetNS(fdPath(n.pod), func() error {
				for time.Since(start) < slice && ctx.Err() == nil {
					if err := connectOnce(&n.server); err != nil {
						return err
					}
					made[i]++
				}
				return nil
			})
		})
	}
	err = group.Wait()
	total := 0
	for _, count := range made {
		total += count
	}
	return float64(total) / time.Since(start).Seconds(), err
}
