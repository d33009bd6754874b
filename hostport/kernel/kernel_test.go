package kernel

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/netnstest"
)

// inNetNS runs f on a thread in a network namespace of its own, whose descriptor it
// is given. Without root the test is skipped, or fails where everything must run.
func inNetNS(t *testing.T, f func(netns int) error) {
	t.Helper()
	file := netnstest.New(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f(int(file.Fd()))
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// trackingTable makes the kernel track connections in its namespace.
func trackingTable() *Layout {
	l := NewLayout("test")
	l.BaseChain("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter)
	l.Rule("output", "", Translated(), Return())
	return l
}

// fill sends a datagram to each of many ports of lo, each of which is a flow.
func fill(ports int) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(lo.Name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return err
	}
	for port := range ports {
		to := &unix.SockaddrInet4{Port: 1000 + port, Addr: [4]byte{127, 0, 0, 1}}
		if err := unix.Sendto(s, []byte("x"), 0, to); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

// TestFlowListIsStreamed lists many flows and looks at how much memory that holds:
// the list takes some 300 bytes for each, of which nothing may be kept.
func TestFlowListIsStreamed(t *testing.T) {
	const flows = 20_000
	inNetNS(t, func(netns int) error {
		k := New(netns, trackingTable())
		if err := errors.Join(k.Replace(nil), fill(flows)); err != nil {
			return err
		}
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		live := func() uint64 {
			runtime.GC()
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			return stats.HeapAlloc
		}
		before, seen, last := live(), 0, uint64(0)
		err := k.DeleteFlowsIf(FlowQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP}, func(f Flow) (bool, error) {
			if seen++; seen == flows-100 {
				last = live()
			}
			return f.Port == 1000, nil
		})
		if err != nil {
			return err
		}
		if seen < flows || last == 0 {
			t.Errorf("saw %d flows of %d", seen, flows)
		}
		if grown := int64(last) - int64(before); grown > 1<<20 {
			t.Errorf("the list of %d flows holds %d bytes", flows, grown)
		}
		left := 0
		err = k.DeleteFlowsIf(FlowQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, Port: 1000}, func(Flow) (bool, error) {
			left++
			return false, nil
		})
		if left != 0 {
			t.Errorf("%d flows to the port are left", left)
		}
		return errors.Join(err, k.Drop(), k.Close())
	})
}

// TestInterruptedListsAreRepeated answers as the kernel does when a list changes
// while it is read: by a flag in the messages, or by EINTR.
func TestInterruptedListsAreRepeated(t *testing.T) {
	for _, test := range []struct {
		name        string
		interrupted int
		err         error
	}{
		{"never", 0, nil}, {"twice", 2, nil}, {"always", 100, ErrInterrupted},
	} {
		t.Run(test.name, func(t *testing.T) {
			asked := 0
			conn := nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
				asked++
				reply := netlink.Message{
					Header: netlink.Header{Type: 100, Flags: netlink.Multi, Sequence: requests[0].Header.Sequence, PID: requests[0].Header.PID},
					Data:   []byte{1, 2, 3, 4},
				}
				if asked <= test.interrupted {
					reply.Header.Flags |= unix.NLM_F_DUMP_INTR
				}
				return nltest.Multipart([]netlink.Message{reply, reply, {}})
			})
			defer conn.Close()
			found, err := collect(conn, netlink.Message{}, 4)
			if !errors.Is(err, test.err) || test.err == nil && (err != nil || len(found) != 2) {
				t.Errorf("found %d messages, %v", len(found), err)
			}
			if want := min(test.interrupted+1, dumpTries); asked != want {
				t.Errorf("asked %d times, want %d", asked, want)
			}
		})
	}
}

// TestMissingFeaturesAreNamed lets a kernel lack each feature, with all that comes
// after it as kernels before Linux 5.2 do, and asks the kernel here, which has all.
func TestMissingFeaturesAreNamed(t *testing.T) {
	all := features()
	for i, f := range all {
		broken := func(asked feature) bool {
			for _, later := range all[i:] {
				if asked.name == later.name {
					return true
				}
			}
			return false
		}
		if got := firstMissing(all, broken); got != f.name {
			t.Errorf("%s is missing; got %q", f.name, got)
		}
	}
	inNetNS(t, func(netns int) error {
		k := New(netns, trackingTable())
		if got := firstMissing(all, k.table.lacks); got != "" {
			t.Errorf("said to be missing here: %s", got)
		}
		// What no kernel has is missing: a chain type at a hook where it cannot be.
		impossible := feature{"impossible", "nosuchtype", nftables.ChainHookInput, nil}
		if got := firstMissing([]feature{impossible}, k.table.lacks); got != "impossible" {
			t.Errorf("an impossible feature is not missing: %q", got)
		}
		// A table that cannot be made says why in words.
		l := trackingTable()
		l.BaseChain("wrong", "nosuchtype", nftables.ChainHookInput, *nftables.ChainPriorityFilter)
		if err := New(netns, l).Replace(nil); !errors.Is(err, unix.ENOENT) {
			t.Errorf("a table with an impossible chain: %v", err)
		}
		return k.Close()
	})
}

// TestExplain checks what is said about kernels and rights that rule nftables out.
func TestExplain(t *testing.T) {
	for errno, want := range map[error]string{
		unix.EPERM: "CAP_NET_ADMIN", unix.EOPNOTSUPP: "CONFIG_NF_TABLES_INET", unix.EAFNOSUPPORT: "CONFIG_NF_TABLES_INET",
	} {
		if err := explain(errno); !strings.Contains(err.Error(), want) || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// TestLackingSubsystems turns the kernel's errors for what it is built without into
// errors that callers can tell.
func TestLackingSubsystems(t *testing.T) {
	for _, errno := range []error{unix.ENOENT, unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT} {
		if err := noListeners(errno); !errors.Is(err, ErrNoListeners) {
			t.Errorf("sockets: %v: %v", errno, err)
		}
	}
	if err := noListeners(unix.ENOBUFS); errors.Is(err, ErrNoListeners) {
		t.Errorf("sockets: %v", err)
	}
	inNetNS(t, func(netns int) error {
		k := New(netns, trackingTable())
		err := k.flows.with(func(*netlink.Conn) error { return unix.EINVAL })
		if !errors.Is(err, ErrNoFlows) {
			t.Errorf("flows: %v", err)
		}
		return errors.Join(k.CheckFlows(), k.Close())
	})
}

// TestFieldsOfKeys reads back what an interface's field holds.
func TestFieldsOfKeys(t *testing.T) {
	if got := InterfaceIn(InterfaceField("cni0") + InterfaceField("eth0")); got != "cni0" {
		t.Errorf("got %q", got)
	}
	if f := IPv4(); f.Has(netip.Addr{}) || f.Has(netip.IPv6Loopback()) || !f.Has(netip.MustParseAddr("127.0.0.1")) {
		t.Error("IPv4 has 127.0.0.1 alone of these")
	}
}
