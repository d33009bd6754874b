package hostport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// newManagerFor makes a Manager that has not been synchronized.
func newManagerFor(t testing.TB, ns netns, change ...func(*Config)) *Manager {
	t.Helper()
	c := Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), NetNS: ns.fd()}
	for _, f := range change {
		f(&c)
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// run runs the Manager until ctx, or the test, ends. When it returns, the Manager
// listens: it has healed what was broken before it ran.
func run(t testing.TB, ctx context.Context, ns netns, m *Manager) (stop func()) {
	t.Helper()
	ns.nft(t, "add element inet crinet ports4 { udp . 9 : 10.9.9.9 . 9 }")
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	waitIntact(t, ns, m, 5*time.Second)
	return stop
}

// isIntact compares the kernel with the desired state, through a Kernel of its own.
func isIntact(ns netns, m *Manager) error {
	m.mu.Lock()
	wanted := maps.Clone(m.desired.elements)
	m.mu.Unlock()
	k := kernel.New(ns.fd(), newLayout())
	why, err := k.Intact()
	if err == nil && why == "" {
		var found map[kernel.Key]kernel.Element
		found, err = k.Elements()
		if u := kernel.Diff(found, wanted); !u.Empty() {
			why = fmt.Sprintf("too many or wrong: %q, missing: %q", u.Remove, u.Add)
		}
	}
	err = errors.Join(err, k.Close())
	if err == nil && why != "" {
		err = errors.New(why)
	}
	return err
}

func waitIntact(t testing.TB, ns netns, m *Manager, limit time.Duration) time.Duration {
	t.Helper()
	return eventually(t, limit, func() error { return isIntact(ns, m) })
}

// watchChanges counts, from now on, notifications about our table: of the table
// itself, and of elements by set. What it returns gives the count.
func watchChanges(t *testing.T, ns netns) func() map[string]int {
	t.Helper()
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		t.Fatal(err)
	}
	return func() map[string]int {
		t.Helper()
		count := make(map[string]int)
		for {
			// Notifications are there when the transaction returns.
			if err := conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			messages, err := conn.Receive()
			if err != nil {
				return count
			}
			for _, message := range messages {
				set := ""
				d, err := netlink.NewAttributeDecoder(message.Data[4:])
				if err != nil {
					t.Fatal(err)
				}
				for d.Next() {
					if d.Type() == unix.NFTA_SET_ELEM_LIST_SET {
						set = d.String()
					}
				}
				switch message.Header.Type & 0xff {
				case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
					count["table"]++
				case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
					count[set]++
				}
			}
		}
	}
}

// manyPods are pods of two mappings each.
func manyPods(t testing.TB, count int) []Pod {
	t.Helper()
	pods := make([]Pod, 0, count)
	for i := range count {
		pods = append(pods, testPod(t, fmt.Sprint("pod", i),
			[]string{fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), fmt.Sprintf("fd00:1::%x", i+1)},
			fmt.Sprintf("tcp %d:80", 1000+i), fmt.Sprintf("tcp 192.0.2.1 %d:80", 10000+i)))
	}
	return pods
}

// TestHeal breaks the table in many ways under a running Manager.
func TestHeal(t *testing.T) {
	for _, test := range []struct{ name, script string }{
		{"flush ruleset", "flush ruleset"},
		{"delete table", "delete table inet crinet"},
		{"flush table", "flush table inet crinet"},
		{"flush map", "flush map inet crinet ports4"},
		{"delete an element", "delete element inet crinet ports4 { tcp . 1005 }"},
		{"delete an element with address", "delete element inet crinet addr_ports4 { 192.0.2.1 . tcp . 10005 }"},
		{"delete a hairpin element", "delete element inet crinet hairpin6 { fd00:1::2 . fd00:1::2 }"},
		{"add an element", "add element inet crinet ports4 { udp . 9 : 10.9.9.9 . 9 }"},
		{"change an element", "delete element inet crinet ports4 { tcp . 1005 }; add element inet crinet ports4 { tcp . 1005 : 10.9.9.9 . 9 }"},
		{"flush a chain", "flush chain inet crinet guard"},
		{"add a rule", "add rule inet crinet hostports drop"},
		{"insert a rule", "insert rule inet crinet prerouting accept"},
		{"add a chain", "add chain inet crinet mine { type filter hook input priority 0; policy drop; }"},
		{"add a set", "add set inet crinet mine { type ipv4_addr; }"},
		{"change a policy", "chain inet crinet guard { policy drop; }"},
		{"make the table dormant", "add table inet crinet { flags dormant; }"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := nftNetNS(t)
			var heals atomic.Int32
			m := newManagerFor(t, ns, func(c *Config) { c.OnHeal = func(string) { heals.Add(1) } })
			if err := m.Sync(t.Context(), manyPods(t, 200)); err != nil {
				t.Fatal(err)
			}
			run(t, t.Context(), ns, m)
			want := heals.Load() + 1
			ns.nft(t, test.script)
			took := waitIntact(t, ns, m, 2*time.Second)
			t.Logf("healed after %v", took)
			eventually(t, time.Second, func() error {
				if got := heals.Load(); got != want {
					return fmt.Errorf("%d heals, want %d", got, want)
				}
				return nil
			})
		})
	}
}

// TestHealMany breaks a table with many mappings, and takes the time.
func TestHealMany(t *testing.T) {
	for _, script := range []string{"flush ruleset", "delete element inet crinet ports4 { tcp . 1005 }"} {
		t.Run(script, func(t *testing.T) {
			ns := nftNetNS(t)
			healed := make(chan time.Time, 10)
			m := newManagerFor(t, ns, func(c *Config) {
				c.Log = slog.New(slog.DiscardHandler)
				c.OnHeal = func(string) { healed <- time.Now() }
			})
			if err := m.Sync(t.Context(), manyPods(t, 5000)); err != nil {
				t.Fatal(err)
			}
			run(t, t.Context(), ns, m)
			<-healed
			ns.nft(t, script)
			broken := time.Now()
			select {
			case now := <-healed:
				t.Logf("10,000 mappings healed after %v", now.Sub(broken))
			case <-time.After(2 * time.Second):
				t.Error("not healed within 2s")
			}
			if err := isIntact(ns, m); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOwnChangesAreNoAlarm maps and unmaps under a running Manager, which is not
// to take that for somebody else's doing.
func TestOwnChangesAreNoAlarm(t *testing.T) {
	ns := nftNetNS(t)
	m := newManagerFor(t, ns)
	if err := m.Sync(t.Context(), manyPods(t, 100)); err != nil {
		t.Fatal(err)
	}
	changes := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := m.host.WatchTable(ctx, func(what string) { changes <- what }); err != nil {
			t.Error(err)
		}
	})
	defer watching.Wait()
	defer cancel()
	seen := []string{<-changes} // it listens
	mustMap(t, m, testPod(t, "web", []string{"10.1.0.2"}, "tcp 80:80"))
	mustUnmap(t, m, "sandbox-web")
	ns.nft(t, "add rule inet crinet hostports drop; add table inet other; add rule inet crinet hostports drop")
	for len(seen) < 3 {
		select {
		case what := <-changes:
			seen = append(seen, what)
		case <-time.After(5 * time.Second):
			t.Fatalf("seen so far: %q", seen)
		}
	}
	if diff := cmp.Diff([]string{"", "rule added", "rule added"}, seen); diff != "" {
		t.Error(diff)
	}
}

// TestTransactionsMeetOthers maps and unmaps, with nobody listening, what somebody
// else has changed before.
func TestTransactionsMeetOthers(t *testing.T) {
	ns := nftNetNS(t)
	m := newManagerFor(t, ns)
	if err := m.Sync(t.Context(), manyPods(t, 10)); err != nil {
		t.Fatal(err)
	}
	web := testPod(t, "web", []string{"10.1.1.2"}, "tcp 80:80")
	for _, test := range []struct {
		name, script string
		f            func()
	}{
		{"map into nothing", "flush ruleset", func() { mustMap(t, m, web) }},
		{"unmap from nothing", "delete table inet crinet", func() { mustUnmap(t, m, web.SandboxID) }},
		{"map what is there", "add element inet crinet ports4 { tcp . 80 : 10.9.9.9 . 9 }", func() { mustMap(t, m, web) }},
		{"unmap what is not", "delete element inet crinet ports4 { tcp . 80 }", func() { mustUnmap(t, m, web.SandboxID) }},
	} {
		ns.nft(t, test.script)
		test.f()
		if err := isIntact(ns, m); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestPacer checks that one heal costs no pause, and a war grows quiet.
func TestPacer(t *testing.T) {
	p := newPacer(time.Minute)
	now := time.Now()
	var pauses []time.Duration
	for range 9 {
		pauses = append(pauses, p.pause(now, true))
		now = now.Add(100 * time.Millisecond)
	}
	pauses = append(pauses, p.pause(now, false), p.pause(now.Add(time.Hour), true))
	ms := time.Millisecond
	want := []time.Duration{0, 25 * ms, 50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, time.Second, time.Second, 0, 0}
	if diff := cmp.Diff(want, pauses); diff != "" {
		t.Errorf("pauses: %s", diff)
	}
	failed := errors.New("failed")
	if got := []time.Duration{p.next(failed), p.next(failed), p.next(nil), p.next(failed)}; !cmp.Equal(got,
		[]time.Duration{retryAfter, 2 * retryAfter, time.Minute, retryAfter}) {
		t.Errorf("retries: %v", got)
	}
}
