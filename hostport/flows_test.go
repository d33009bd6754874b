package hostport

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// udpSocket is one source port of the client for all of a test.
func udpSocket(t *testing.T, ns netns, network, address string) net.Conn {
	t.Helper()
	var conn net.Conn
	ns.mustDo(t, func() (err error) {
		conn, err = net.Dial(network, address)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// expectFlow asks over a flow and expects that answer, or none if it is empty. A
// datagram may be lost: under load the neighbours' addresses take long to be
// learned. The refusal of an earlier datagram may come late as well.
func expectFlow(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	for deadline := time.Now().Add(20 * patience); ; {
		got, err := ask(conn)
		switch {
		case err == nil && got == want || err != nil && want == "":
			return
		case err == nil || time.Now().After(deadline):
			t.Errorf("got %q, %v; want %q", got, err, want)
			return
		}
	}
}

// TestUDPFlowFollows keeps one flow from one source port through all changes of
// its mapping.
func TestUDPFlowFollows(t *testing.T) {
	for _, test := range []struct{ network, host, from string }{
		{"udp4", nodeIP4, clientIP4}, {"udp6", nodeIP6, clientIP6},
	} {
		t.Run(test.network, func(t *testing.T) {
			n := newTestNode(t, "cni0")
			one, two := n.addPod(t, "one", 2), n.addPod(t, "two", 3)
			one.serve(t, "one", test.network, ":5353")
			two.serve(t, "two", test.network, ":5353")
			conn := udpSocket(t, n.client, test.network, hostPort(test.host, 53))
			expect := func(want string) {
				t.Helper()
				expectFlow(t, conn, want)
			}
			m := newManager(t, n.node)
			expect("") // leaves an entry that leads nowhere
			mustMap(t, m, one.pod(t, "udp 53:5353"))
			expect("one " + test.from)
			mustUnmap(t, m, "sandbox-one")
			expect("")
			mustMap(t, m, two.pod(t, withManyPorts("udp 53:5353")...)) // whose flows are listed
			expect("two " + test.from)
			mustUnmap(t, m, "sandbox-two")
			mustMap(t, m, one.pod(t, "udp "+test.host+" 53:5353"))
			expect("one " + test.from)
		})
	}
}

// flowsTo lists the connection tracking entries of UDP flows to a port: where they
// lead -> the kernel's number of the entry.
func flowsTo(t *testing.T, ns netns, port uint16) map[netip.Addr]uint32 {
	t.Helper()
	k := kernel.New(ns.fd(), newLayout())
	defer k.Close()
	found := make(map[netip.Addr]uint32)
	query := kernel.FlowQuery{Family: unix.AF_INET, Protocol: UDP.number(), Port: port}
	err := k.DeleteFlowsIf(query, func(f kernel.Flow) (bool, error) {
		found[f.Dst] = f.ID
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// withManyPorts adds so many that flows are listed rather than deleted by filter.
func withManyPorts(mapping string) []string {
	mappings := []string{mapping}
	for i := range maxFilters {
		mappings = append(mappings, fmt.Sprintf("udp %d:%d", 20000+i, 20000+i))
	}
	return mappings
}

// TestOtherFlowsStay checks that no more is forgotten than what a mapping changes.
func TestOtherFlowsStay(t *testing.T) {
	mapping := "udp " + nodeIP4 + " 53:5353"
	for name, mappings := range map[string][]string{"few ports": {mapping}, "many ports": withManyPorts(mapping)} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t, "cni0")
			web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
			web.serve(t, "web", "udp4", ":5353")
			other.serve(t, "other", "udp4", ":53")
			m := newManager(t, n.node)
			n.client.expect(t, "udp4", hostPort(nodeIP4, 53), "") // its flow leads nowhere
			n.client.expect(t, "udp4", hostPort(gwIP4, 53), "")
			n.client.expect(t, "udp4", hostPort(other.ip4, 53), "other "+clientIP4)
			node, gw, transit := netip.MustParseAddr(nodeIP4), netip.MustParseAddr(gwIP4), netip.MustParseAddr(other.ip4)
			start := flowsTo(t, n.node, 53)
			if len(start) != 3 {
				t.Fatalf("flows: %v", start)
			}
			pod := web.pod(t, mappings...)
			mustMap(t, m, pod)
			want := map[netip.Addr]uint32{gw: start[gw], transit: start[transit]}
			if diff := cmp.Diff(want, flowsTo(t, n.node, 53), compareAddr); diff != "" {
				t.Errorf("after Map: %s", diff)
			}
			n.client.expect(t, "udp4", hostPort(nodeIP4, 53), "web "+clientIP4)
			want[node] = flowsTo(t, n.node, 53)[node]
			pod.Mappings = append(pod.Mappings, Mapping{Protocol: UDP, HostPort: 9, ContainerPort: 9})
			mustMap(t, m, pod) // again, with one mapping more: the flow stays
			if diff := cmp.Diff(want, flowsTo(t, n.node, 53), compareAddr); diff != "" {
				t.Errorf("after Map again: %s", diff)
			}
			mustUnmap(t, m, pod.SandboxID)
			delete(want, node)
			if diff := cmp.Diff(want, flowsTo(t, n.node, 53), compareAddr); diff != "" {
				t.Errorf("after Unmap: %s", diff)
			}
		})
	}
}

// TestFlowsBegunInBetween sends to a port while its mapping is away, or is another
// pod's, and expects that the flow goes over once the table is right.
func TestFlowsBegunInBetween(t *testing.T) {
	n := newTestNode(t, "cni0")
	one, two := n.addPod(t, "one", 2), n.addPod(t, "two", 3)
	one.serve(t, "one", "udp4", ":5353")
	two.serve(t, "two", "udp4", ":5353")
	first := newManager(t, n.node)
	mustMap(t, first, one.pod(t, "udp 53:5353"))
	conn := udpSocket(t, n.client, "udp4", hostPort(nodeIP4, 53))
	expect := func(when, want string) {
		t.Helper()
		t.Log(when)
		expectFlow(t, conn, want)
	}
	expect("start", "one "+clientIP4)
	next := newManagerFor(t, n.node)
	if err := next.Sync(t.Context(), []Pod{two.pod(t, "udp 53:5353")}); err != nil {
		t.Fatal(err)
	}
	expect("another daemon knows of another pod", "two "+clientIP4)
	n.node.nft(t, "delete element inet crinet ports4 { udp . 53 }")
	conn = udpSocket(t, n.client, "udp4", hostPort(nodeIP4, 53))
	expect("no mapping", "")
	run(t, t.Context(), n.node, next)
	expect("healed", "two "+clientIP4)
}

// TestFlowsSurvive keeps a connection busy while the table is synchronized by the
// next daemon, flushed and healed, and other pods come and go.
func TestFlowsSurvive(t *testing.T) {
	n := newTestNode(t, "cni0")
	web, gone := n.addPod(t, "web", 2), n.addPod(t, "gone", 3)
	web.serve(t, "web", "tcp4", ":8080")
	pod := web.pod(t, "tcp 80:8080")
	m := newManager(t, n.node)
	mustMap(t, m, pod)
	mustMap(t, m, gone.pod(t, "tcp 90:8080", "udp 90:8080"))

	var conn net.Conn
	n.client.mustDo(t, func() (err error) {
		conn, err = net.Dial("tcp4", hostPort(nodeIP4, 80))
		return err
	})
	defer conn.Close()
	if _, err := readLine(conn); err != nil {
		t.Fatal(err)
	}
	echo := func(when string) {
		t.Helper()
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, when+"\n"); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if got, err := readLine(conn); err != nil || got != when {
			t.Fatalf("%s: got %q, %v", when, got, err)
		}
		// And new ones come through.
		n.client.expect(t, "tcp4", hostPort(nodeIP4, 80), "web "+clientIP4)
	}
	echo("start")
	next := newManagerFor(t, n.node)
	watch := watchChanges(t, n.node)
	if err := next.Sync(t.Context(), []Pod{pod}); err != nil {
		t.Fatal(err)
	}
	echo("another daemon, and a pod less")
	if diff := cmp.Diff(map[string]int{"ports4": 2, "ports6": 2, "hairpin4": 1, "hairpin6": 1}, watch()); diff != "" {
		t.Errorf("Sync changed something else than the pod that is gone: %s", diff)
	}
	n.client.expect(t, "tcp4", hostPort(nodeIP4, 90), "")
	mustMap(t, next, gone.pod(t, "tcp 90:8080"))
	echo("another pod")

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	run(t, ctx, n.node, next)
	n.node.nft(t, "flush ruleset")
	waitIntact(t, n.node, next, time.Second)
	echo("flushed and healed")
}
