package hostport

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

func TestNewChecksItsConfig(t *testing.T) {
	for _, c := range []Config{{}, {Log: slog.Default(), Conflict: "perhaps"}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// TestUnavailable lacks the right that nftables needs.
func TestUnavailable(t *testing.T) {
	ns := nftNetNS(t)
	m := newManagerFor(t, ns)
	pod := testPod(t, "web", []string{"10.1.0.2"}, "tcp 80:80")
	check := func(when string, reason string) {
		t.Helper()
		_, reserve := m.Reserve(t.Context(), pod)
		for what, err := range map[string]error{"Available": m.Available(), "Reserve": reserve} {
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), reason) {
				t.Errorf("%s: %s: %v, want %q", when, what, err, reason)
			}
		}
		if _, err := m.Reserve(t.Context(), Pod{Name: "without ports"}); err != nil {
			t.Errorf("%s: a pod without hostPorts: %v", when, err)
		}
	}
	check("new", "not synchronized yet")
	if err := m.Map(t.Context(), pod); !errors.Is(err, ErrUnavailable) {
		t.Errorf("mapped before Sync: %v", err)
	}
	err := ns.do(func() error {
		if err := dropNetAdmin(); err != nil {
			return err
		}
		// The namespace's own thread has lost the right; sockets are made on it.
		m.host = kernel.New(0, newLayout())
		return m.Sync(t.Context(), []Pod{pod})
	})
	if err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Sync without the right: %v", err)
	}
	check("without the right", "CAP_NET_ADMIN")
	// The right is back: what Sync was told is in force.
	if err := m.host.Close(); err != nil {
		t.Fatal(err)
	}
	m.host = kernel.New(ns.fd(), newLayout())
	if _, err := m.check(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := m.Available(); err != nil {
		t.Error(err)
	}
	if err := isIntact(ns, m); err != nil {
		t.Error(err)
	}
	if pods, mappings := m.Count(); pods != 1 || mappings != 1 {
		t.Errorf("%d pods, %d mappings", pods, mappings)
	}
}

// dropNetAdmin takes the right from the calling thread.
func dropNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &data[0])
}

// TestSyncReportsWhatItLeavesOut maps the good pods beside the bad ones.
func TestSyncReportsWhatItLeavesOut(t *testing.T) {
	ns := nftNetNS(t)
	m := newManagerFor(t, ns)
	ips := []string{"10.1.0.2"}
	twice := testPod(t, "twice", ips, "tcp 81:80")
	noSandbox := testPod(t, "nosandbox", ips, "tcp 82:80")
	noSandbox.SandboxID = ""
	err := m.Sync(t.Context(), []Pod{
		testPod(t, "web", ips, "tcp 80:80"), testPod(t, "rival", ips, "tcp 80:80"),
		twice, twice, noSandbox, testPod(t, "homeless", nil, "tcp 83:80"), testPod(t, "none", ips),
	})
	for _, want := range []string{"rival", "default/web", "twice", "nosandbox", "homeless"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if pods, mappings := m.Count(); pods != 2 || mappings != 2 || m.Available() != nil {
		t.Errorf("%d pods, %d mappings, %v", pods, mappings, m.Available())
	}
	if err := isIntact(ns, m); err != nil {
		t.Error(err)
	}
}

// TestMostMappings maps as many ports as one pod may have.
func TestMostMappings(t *testing.T) {
	ns := nftNetNS(t)
	m := newManager(t, ns)
	pod := testPod(t, strings.Repeat("long", 60), []string{"10.1.0.2", "fd00:1::2"})
	var err error
	if pod.Mappings, err = ParseMappings(many(MaxMappings)); err != nil {
		t.Fatal(err)
	}
	mustMap(t, m, pod)
	if err := isIntact(ns, m); err != nil {
		t.Error(err)
	}
	mustUnmap(t, m, pod.SandboxID)
	if len(m.desired.elements)+len(m.claims) != 0 {
		t.Errorf("%d elements and %d claims are left", len(m.desired.elements), len(m.claims))
	}
}

// TestConcurrently lets pods come and go at once, beside somebody who flushes.
func TestConcurrently(t *testing.T) {
	ns := nftNetNS(t)
	m := newManager(t, ns)
	run(t, t.Context(), ns, m)
	var all sync.WaitGroup
	for i := range 8 {
		pod := testPod(t, fmt.Sprint("pod", i), []string{fmt.Sprintf("10.1.0.%d", i+2)}, fmt.Sprintf("tcp %d:80", 80+i), fmt.Sprintf("udp %d:80", 80+i))
		all.Go(func() {
			for range 30 {
				r, err := m.Reserve(t.Context(), pod)
				if err != nil {
					t.Error(err)
					return
				}
				if err := m.Map(t.Context(), pod); err != nil {
					t.Error(err)
				}
				r.Release()
				if i%2 == 0 {
					if err := m.Unmap(t.Context(), pod.SandboxID); err != nil {
						t.Error(err)
					}
				} else if err := m.Map(t.Context(), pod); err != nil {
					t.Error(err)
				} else if err := m.Unmap(t.Context(), pod.SandboxID); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Go(func() {
		for range 5 {
			if _, err := ns.try("flush ruleset", "nft", "-f", "-"); err != nil {
				t.Error(err)
			}
		}
	})
	all.Wait()
	waitIntact(t, ns, m, 5*1e9)
	if pods, _ := m.Count(); pods != 0 {
		t.Errorf("%d pods are left", pods)
	}
}
