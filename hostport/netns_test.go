package hostport

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/netnstest"
)

// netns is a network namespace of a test's own.
type netns struct{ file *os.File }

func (ns netns) fd() int { return int(ns.file.Fd()) }

// path is where others find the namespace.
func (ns netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.fd()) }

// needRoot skips the test without root; where everything must run, it fails.
func needRoot(t testing.TB, tools ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root, for network namespaces"
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CRINET_TEST_REQUIRE_ALL") == "1":
		t.Fatalf("the test needs %s", missing)
	default:
		t.Skipf("the test needs %s", missing)
	}
}

// newNetNS makes an empty namespace with lo up. It ends with the test.
func newNetNS(t testing.TB) netns {
	t.Helper()
	ns := netns{netnstest.New(t)}
	// Link-local addresses are to be usable at once.
	ns.sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	ns.sysctl(t, "net/ipv6/conf/all/accept_dad", "0")
	ns.run(t, "ip", "link", "set", "lo", "up")
	return ns
}

// do runs f on a thread inside the namespace.
func (ns netns) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread is given up rather than brought back
		if err := unix.Setns(ns.fd(), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (ns netns) mustDo(t testing.TB, f func() error) {
	t.Helper()
	if err := ns.do(f); err != nil {
		t.Fatal(err)
	}
}

// try runs a command in the namespace.
func (ns netns) try(stdin string, name string, args ...string) (string, error) {
	var out []byte
	err := ns.do(func() error {
		cmd := exec.Command(name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		var err error
		out, err = cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
	return string(out), err
}

func (ns netns) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := ns.try("", name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// nft runs an nft script.
func (ns netns) nft(t testing.TB, script string) {
	t.Helper()
	if _, err := ns.try(script, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// sysctl sets what is below /proc/sys.
func (ns netns) sysctl(t testing.TB, name, value string) {
	t.Helper()
	ns.mustDo(t, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) })
}

func (ns netns) readSysctl(t testing.TB, name string) string {
	t.Helper()
	var value []byte
	ns.mustDo(t, func() (err error) {
		value, err = os.ReadFile("/proc/sys/" + name)
		return err
	})
	return strings.TrimSpace(string(value))
}

// veth joins two namespaces. Addresses come with their prefix length.
func veth(t testing.TB, a netns, aName string, b netns, bName string) {
	t.Helper()
	a.mustDo(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd())})
	})
	a.run(t, "ip", "link", "set", aName, "up")
	b.run(t, "ip", "link", "set", bName, "up")
}

func (ns netns) address(t testing.TB, dev string, addrs ...string) {
	t.Helper()
	for _, a := range addrs {
		args := []string{"addr", "add", a, "dev", dev}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		ns.run(t, "ip", args...)
	}
}

// newManager makes a Manager for the namespace that is in charge already.
func newManager(t testing.TB, ns netns, change ...func(*Config)) *Manager {
	t.Helper()
	m := newManagerFor(t, ns, change...)
	if err := m.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return m
}

func mustMap(t testing.TB, m *Manager, pod Pod) {
	t.Helper()
	if err := m.Map(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}

func mustUnmap(t testing.TB, m *Manager, sandbox string) {
	t.Helper()
	if err := m.Unmap(t.Context(), sandbox); err != nil {
		t.Fatal(err)
	}
}

// testPod makes a pod; its mappings are written as "tcp 80:8080" or
// "udp 127.0.0.1 80:8080".
func testPod(t testing.TB, name string, ips []string, mappings ...string) Pod {
	t.Helper()
	pod := Pod{SandboxID: "sandbox-" + name, Namespace: "default", Name: name, UID: "uid-" + name}
	for _, ip := range ips {
		pod.IPs = append(pod.IPs, netip.MustParseAddr(ip))
	}
	var requests []Request
	for _, text := range mappings {
		fields := strings.Fields(text)
		r := Request{Protocol: fields[0]}
		if len(fields) == 3 {
			r.HostIP = fields[1]
		}
		if _, err := fmt.Sscanf(fields[len(fields)-1], "%d:%d", &r.HostPort, &r.ContainerPort); err != nil {
			t.Fatalf("mapping %q: %v", text, err)
		}
		requests = append(requests, r)
	}
	var err error
	if pod.Mappings, err = ParseMappings(requests); err != nil {
		t.Fatal(err)
	}
	return pod
}

// eventually waits until f says that all is well.
func eventually(t testing.TB, limit time.Duration, f func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %v", limit, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// nftNetNS is a namespace for tests that need no traffic.
func nftNetNS(t testing.TB) netns {
	t.Helper()
	needRoot(t, "ip", "nft")
	return newNetNS(t)
}
