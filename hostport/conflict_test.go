package hostport

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// holds checks that the error is a conflict, and whom it names.
func holds(t *testing.T, err error, holder string) {
	t.Helper()
	var conflict *ConflictError
	if holder == "" && err != nil {
		t.Errorf("got %v, want none", err)
	}
	if holder != "" && (!errors.As(err, &conflict) || !strings.Contains(conflict.Holder, holder)) {
		t.Errorf("got %v, want a conflict with %q", err, holder)
	}
}

// unborn is a pod before it has a sandbox and addresses.
func unborn(t *testing.T, name string, mappings ...string) Pod {
	t.Helper()
	pod := testPod(t, name, nil, mappings...)
	pod.SandboxID = ""
	return pod
}

func TestConflictsBetweenPods(t *testing.T) {
	ns := nftNetNS(t)
	m := newManager(t, ns)
	ips := []string{"10.1.0.2", "fd00:1::2"}
	mustMap(t, m, testPod(t, "web", ips, "tcp 80:80", "tcp 192.0.2.1 81:80", "tcp 0.0.0.0 82:80", "tcp :: 83:80", "tcp 2001:db8::1 84:80"))
	for mapping, conflict := range map[string]bool{
		"tcp 80:80":               true,
		"tcp 192.0.2.1 80:80":     true,
		"tcp 0.0.0.0 80:80":       true,
		"tcp 2001:db8::1 80:80":   true,
		"udp 80:80":               false,
		"tcp 81:80":               true,
		"tcp 192.0.2.1 81:80":     true,
		"tcp 192.0.2.2 81:80":     false,
		"tcp 0.0.0.0 81:80":       true,
		"tcp :: 81:80":            false,
		"tcp 82:80":               true,
		"tcp 127.0.0.1 82:80":     true,
		"tcp :: 82:80":            false,
		"tcp 0.0.0.0 83:80":       false,
		"tcp 2001:db8::1 83:80":   true,
		"tcp 2001:db8::2 84:80":   false,
		"tcp 84:80":               true,
		"sctp 192.0.2.1 84:80":    false,
		"tcp 255.255.255.1 85:80": false,
	} {
		t.Run(mapping, func(t *testing.T) {
			holder := ""
			if conflict {
				holder = "pod default/web (sandbox sandbox-web)"
			}
			r, err := m.Reserve(t.Context(), unborn(t, "other", mapping))
			holds(t, err, holder)
			if err == nil {
				r.Release()
			}
			holds(t, m.Map(t.Context(), testPod(t, "other", ips, mapping)), holder)
			mustUnmap(t, m, "sandbox-other")
		})
	}
}

func TestReservations(t *testing.T) {
	ns := nftNetNS(t)
	m := newManager(t, ns)
	ips := []string{"10.1.0.2"}
	first, err := m.Reserve(t.Context(), unborn(t, "first", "tcp 80:80", "tcp 81:80"))
	if err != nil {
		t.Fatal(err)
	}
	reserve := func(holder string) {
		t.Helper()
		r, err := m.Reserve(t.Context(), unborn(t, "second", "tcp 81:80"))
		holds(t, err, holder)
		if err == nil {
			r.Release()
			r.Release()
		}
	}
	reserve("pod default/first, which is being created")
	holds(t, m.Map(t.Context(), testPod(t, "second", ips, "tcp 81:80")), "default/first")
	if err := m.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	reserve("pod default/first, which is being created") // Sync keeps what is in flight
	first.Release()
	reserve("")

	first, err = m.Reserve(t.Context(), unborn(t, "first", "tcp 80:80", "tcp 81:80"))
	if err != nil {
		t.Fatal(err)
	}
	mustMap(t, m, testPod(t, "first", ips, "tcp 80:80", "tcp 81:80"))
	first.Release()
	reserve("pod default/first (sandbox sandbox-first)") // the sandbox has taken over
	mustUnmap(t, m, "sandbox-first")
	reserve("")

	none, err := m.Reserve(t.Context(), unborn(t, "none"))
	if err != nil {
		t.Fatal(err)
	}
	none.Release()
}

// TestOneWins lets many pods ask for a port at once.
func TestOneWins(t *testing.T) {
	ns := nftNetNS(t)
	m := newManager(t, ns)
	var won, lost sync.Map
	var all sync.WaitGroup
	for i := range 20 {
		pod := unborn(t, fmt.Sprint("pod", i), "tcp 80:80", "udp 80:80")
		all.Go(func() {
			if _, err := m.Reserve(t.Context(), pod); err != nil {
				lost.Store(pod.Name, err)
			} else {
				won.Store(pod.Name, true)
			}
		})
	}
	all.Wait()
	if w, l := count(&won), count(&lost); w != 1 || l != 19 {
		t.Errorf("%d won and %d lost", w, l)
	}
	lost.Range(func(_, err any) bool {
		holds(t, err.(error), "which is being created")
		return true
	})
}

func count(m *sync.Map) (n int) {
	m.Range(func(any, any) bool {
		n++
		return true
	})
	return n
}

func TestConflictsWithProcesses(t *testing.T) {
	ns := nftNetNS(t)
	ns.run(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	ns.run(t, "ip", "addr", "add", "192.0.2.2/32", "dev", "lo")
	for network, addresses := range map[string][]string{
		"tcp4": {"0.0.0.0:1001", "127.0.0.1:1002", "192.0.2.1:1003"},
		"tcp6": {"[::]:1004", "[::1]:1005"},
		"tcp":  {"[::]:1006"},
		"udp4": {"0.0.0.0:1007"},
		"udp":  {"[::]:1008"},
	} {
		for _, address := range addresses {
			ns.serve(t, "host", network, address)
		}
	}
	m := newManager(t, ns)
	relaxed := newManager(t, ns, func(c *Config) { c.Conflict = Warn })
	// A client's port is nobody's service.
	client := udpSocket(t, ns, "udp4", "127.0.0.1:1007")
	clientPort := client.LocalAddr().(*net.UDPAddr).Port

	me := fmt.Sprintf("(pid %d)", os.Getpid())
	for mapping, conflict := range map[string]bool{
		"tcp 1000:80":             false,
		"tcp 1001:80":             true,
		"udp 1001:80":             false,
		"tcp 192.0.2.2 1001:80":   true,
		"tcp :: 1001:80":          false,
		"tcp 1002:80":             true,
		"tcp 192.0.2.2 1002:80":   false,
		"tcp 1003:80":             true,
		"tcp 127.0.0.1 1003:80":   false,
		"tcp 0.0.0.0 1004:80":     false, // Go's tcp6 is IPv6 only
		"tcp :: 1004:80":          true,
		"tcp 1005:80":             false, // ::1 to ::1 is not translated
		"tcp ::1 1005:80":         true,
		"tcp ::1 1004:80":         true,
		"tcp 0.0.0.0 1006:80":     true,
		"tcp 2001:db8::1 1006:80": true,
		"udp 1007:80":             true,
		"udp 192.0.2.1 1008:80":   true,
		"sctp 1001:80":            false,
		fmt.Sprintf("udp 0.0.0.0 %d:80", clientPort): false,
	} {
		t.Run(mapping, func(t *testing.T) {
			holder := ""
			if conflict {
				holder = me
			}
			// Sockets on one port are listed another way than those on several.
			for _, more := range [][]string{nil, {"tcp 2000:1", "udp 2000:1"}} {
				pod := unborn(t, "web", append([]string{mapping}, more...)...)
				reserveAndRelease(t, m, pod, holder)
				reserveAndRelease(t, relaxed, pod, "")
			}
		})
	}
	if len(m.claims) != 0 || len(m.inFlight) != 0 {
		t.Errorf("refused pods hold ports: %v", m.claims)
	}
}

func reserveAndRelease(t *testing.T, m *Manager, pod Pod, holder string) {
	t.Helper()
	r, err := m.Reserve(t.Context(), pod)
	holds(t, err, holder)
	if err == nil {
		r.Release()
	}
}

func TestHolders(t *testing.T) {
	names, err := kernel.New(0, newLayout()).Holders(t.Context(), []kernel.Listener{{Inode: 0}, {Inode: 4294967295, UID: 12}})
	if err != nil {
		t.Fatal(err)
	}
	if got := names[0]; got != "the kernel" {
		t.Errorf("inode 0: %s", got)
	}
	if got := names[4294967295]; !strings.Contains(got, "uid 12") {
		t.Errorf("unknown inode: %s", got)
	}
}

// TestPortsOfOthersAreHeld holds ports that a plugin has mapped against other pods,
// over a restart as well, and leaves table and flows alone.
func TestPortsOfOthersAreHeld(t *testing.T) {
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	web.serve(t, "web", "udp4", ":5353")
	m := newManager(t, n.node)
	mustMap(t, m, web.pod(t, "udp 54:5353"))
	early := testPod(t, "early", []string{"10.1.0.9"}, "udp 53:5353")
	early.Foreign = true
	empty := n.node.run(t, "nft", "list", "table", "inet", tableName)
	n.client.expect(t, "udp4", hostPort(nodeIP4, 53), "") // leaves an entry
	flows := flowsTo(t, n.node, 53)
	mustMap(t, m, early)
	refused := func(m *Manager) {
		t.Helper()
		if _, err := m.Reserve(t.Context(), testPod(t, "rival", nil, "udp 53:1")); err == nil || !strings.Contains(err.Error(), "default/early") {
			t.Errorf("a pod that wants the port: %v, want a refusal that names the holder", err)
		}
	}
	refused(m)
	if pods, mappings := m.Count(); pods != 1 || mappings != 1 {
		t.Errorf("%d mappings of %d pods are ours", mappings, pods)
	}
	again := newManagerFor(t, n.node)
	if err := again.Sync(t.Context(), []Pod{early, web.pod(t, "udp 54:5353")}); err != nil {
		t.Fatal(err)
	}
	refused(again)
	if now := n.node.run(t, "nft", "list", "table", "inet", tableName); now != empty {
		t.Errorf("the table has become\n%s", now)
	}
	mustUnmap(t, again, early.SandboxID)
	if now := flowsTo(t, n.node, 53); len(flows) != 1 || !cmp.Equal(now, flows, compareAddr) {
		t.Errorf("the flows %v have become %v", flows, now)
	}
	if r, err := again.Reserve(t.Context(), testPod(t, "rival", nil, "udp 53:1")); err != nil {
		t.Error(err)
	} else {
		r.Release()
	}
}
