package nettest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/crinet-project/crinet/internal/netnstest"
)

// lab is a node in namespaces of a test's own: a bridge br0 with two pods, an uplink
// eth0 to an outside that knows no pods, masquerade, and a hostPort of the first pod.
type lab struct {
	t             *testing.T
	node, outside *Space
	pods          [2]*Space
	config        Config
}

const (
	labHostPort = 20001
	labPort     = 8080
)

// newSpace makes a namespace that ends with the test.
func newSpace(t *testing.T) *Space {
	t.Helper()
	s := NewSpace(netnstest.New(t))
	t.Cleanup(func() { _ = s.Close() }) // the namespace goes with its last user
	return s
}

// sh runs a shell in a namespace.
func (s *Space) sh(t *testing.T, format string, args ...any) string {
	t.Helper()
	var out []byte
	err := s.Do(func() (err error) {
		out, err = exec.Command("sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// path is where ip(8) finds a namespace.
func (s *Space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.fd()) }

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, node: newSpace(t), outside: newSpace(t), pods: [2]*Space{newSpace(t), newSpace(t)}}
	const noDAD = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; "
	l.node.sh(t, noDAD+`ip link set lo up; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip link add eth0 type veth peer name up0 netns %s; ip link set eth0 up
		ip addr add 198.51.100.2/24 dev eth0; ip addr add 2001:db8:100::2/64 dev eth0 nodad
		ip link add br0 type bridge; ip link set br0 up
		ip addr add 10.99.0.1/24 dev br0; ip addr add fd00:99::1/64 dev br0 nodad`, l.outside.path())
	l.outside.sh(t, noDAD+`ip link set lo up; ip link set up0 up; ip addr add 198.51.100.1/24 dev up0; ip addr add 2001:db8:100::1/64 dev up0 nodad`)
	l.node.sh(t, `ip route add default via 198.51.100.1; ip -6 route add default via 2001:db8:100::1`)
	for i, pod := range l.pods {
		l.node.sh(t, `ip link add veth%d type veth peer name eth0 netns %s; ip link set veth%d master br0 up; bridge link set dev veth%d hairpin on`, i, pod.path(), i, i)
		pod.sh(t, noDAD+`ip link set lo up; ip link set eth0 up; ip addr add 10.99.0.%d/24 dev eth0; ip addr add fd00:99::%d/64 dev eth0 nodad
			ip route add default via 10.99.0.1; ip -6 route add default via fd00:99::1`, i+2, i+2)
		l.config.Pods[i] = Pod{Space: pod, IfName: "eth0", Addresses: []netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.99.0.%d/24", i+2)), netip.MustParsePrefix(fmt.Sprintf("fd00:99::%d/64", i+2)),
		}}
	}
	l.node.sh(t, `sysctl -qw net.ipv4.conf.br0.route_localnet=1
		nft -f - <<'END'
table inet nat {
	chain pre { type nat hook prerouting priority -100; fib daddr type local meta l4proto {tcp, udp} th dport %[1]d jump to_pod; }
	chain out { type nat hook output priority -100; fib daddr type local meta l4proto {tcp, udp} th dport %[1]d jump to_pod; }
	chain to_pod { meta l4proto tcp dnat ip to 10.99.0.2:%[2]d; meta l4proto udp dnat ip to 10.99.0.2:%[2]d
		meta l4proto tcp dnat ip6 to [fd00:99::2]:%[2]d; meta l4proto udp dnat ip6 to [fd00:99::2]:%[2]d; }
	chain post { type nat hook postrouting priority 100; ip saddr 127.0.0.0/8 oifname br0 masquerade
		ip saddr 10.99.0.0/24 ip daddr != 10.99.0.0/24 masquerade; ip6 saddr fd00:99::/64 ip6 daddr != fd00:99::/64 masquerade
		ip saddr 10.99.0.2 ip daddr 10.99.0.2 masquerade; ip6 saddr fd00:99::2 ip6 daddr fd00:99::2 masquerade; }
}
END
`, labHostPort, labPort)
	l.config.Node, l.config.ServerPort, l.config.HostPort, l.config.MappedBy = l.node, labPort, labHostPort, "the lab"
	l.config.Done = func(Result) {}
	return l
}

// run tests the lab, and returns the results by step.
func (l *lab) run() map[string]Result {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	results, err := Run(ctx, l.config)
	if err != nil {
		l.t.Fatal(err)
	}
	by := make(map[string]Result)
	for _, r := range results {
		by[r.Step] = r
	}
	return by
}
