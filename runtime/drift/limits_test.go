package drift

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

// drifted makes a pod known to a watcher that does not run, and drifted since a time.
func (b *bed) drifted(n int, since time.Time, parts ...string) {
	r := &journal.Record{
		State: journal.Attached, Pod: journal.Pod{Namespace: "default", Name: fmt.Sprint(n)},
		Attachment: cni.Attachment{ContainerID: fmt.Sprintf("sandbox-%d", n), IfName: "eth0"},
	}
	p := &pod{record: r}
	b.pods[r.Key()] = p
	if len(parts) > 0 {
		for _, part := range parts {
			p.found = append(p.found, inspect.Finding{Part: part, Want: "something"})
		}
		b.tell(p)
		p.drift.Since = since
		b.publishPod(p)
	}
}

// Of the node's pods a tenth an hour is made anew, and at least one, the longest drifted
// first; a crinetd that starts again goes on counting.
func TestRemakeIsLimited(t *testing.T) {
	began := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct{ pods, drifted, an, hour int }{{1, 1, 1, 1}, {9, 9, 1, 1}, {25, 20, 2, 2}, {110, 50, 11, 11}} {
		b := newBed(t, Recreate)
		now := began
		b.now = func() time.Time { return now }
		for n := range c.pods {
			if n < c.drifted {
				b.drifted(n, began.Add(-time.Duration(n)*time.Minute), inspect.PartInterface)
			} else {
				b.drifted(n, time.Time{})
			}
		}
		given := func() (ids []string) {
			for id := range b.Remaking() {
				ids = append(ids, id)
			}
			return ids
		}
		expect := func(w *Watcher, when string, want int) {
			t.Helper()
			w.remake()
			w.remake()
			if got := given(); len(got) != want {
				t.Errorf("%d pods, %s: %d are made anew, want %d", c.pods, when, len(got), want)
			}
		}
		expect(b.Watcher, "at once", c.an)
		if oldest := fmt.Sprintf("sandbox-%d", c.drifted-1); !slices.Contains(given(), oldest) {
			t.Errorf("%d pods: %v are made anew, want the longest drifted, %s, among them", c.pods, given(), oldest)
		}
		now = now.Add(59 * time.Minute)
		expect(b.Watcher, "within the hour", c.an)
		again := New(b.Config)
		again.now, again.pods, again.told = b.now, b.pods, b.told
		again.loadRemade()
		for _, p := range again.pods {
			if p.drift != nil && b.Remaking()[p.record.Attachment.ContainerID] {
				p.drift.Remaking = now
			}
		}
		again.remake()
		if len(again.remade) != c.an {
			t.Errorf("%d pods, started again: %d were made anew, want %d", c.pods, len(again.remade), c.an)
		}
		now = now.Add(time.Minute)
		expect(b.Watcher, "an hour later", min(c.an+c.hour, c.drifted))
	}
}

// What a new sandbox would have as well is no reason to make one; a pod whose drift has
// ended, or that is gone, is not made anew.
func TestRemakeOnlyWhatHelps(t *testing.T) {
	b := newBed(t, Recreate)
	b.drifted(1, time.Now(), inspect.PartSysctl)
	b.drifted(2, time.Now(), inspect.PartTable, inspect.PartSysctl)
	b.remake()
	if ids := b.Remaking(); ids != nil {
		t.Errorf("made anew: %v", ids)
	}
	b.drifted(3, time.Now(), inspect.PartSysctl, inspect.PartAddress)
	b.remake()
	if ids := b.Remaking(); len(ids) != 1 || !ids["sandbox-3"] {
		t.Errorf("made anew: %v", ids)
	}
	key := journal.Key{ContainerID: "sandbox-3", IfName: "eth0"}
	b.set(b.pods[key], nil)
	if ids := b.Remaking(); ids != nil {
		t.Errorf("still made anew: %v", ids)
	}
	b.remade = nil
	b.drifted(4, time.Now(), inspect.PartInterface)
	b.remake()
	four := journal.Key{ContainerID: "sandbox-4", IfName: "eth0"}
	if !b.Remaking()["sandbox-4"] {
		t.Error("not made anew")
	}
	b.drop(four, b.pods[four])
	if ids := b.Remaking(); ids != nil || b.Of(four) != nil {
		t.Errorf("a pod that is gone: %v", ids)
	}
}

// CHECK counts where it has passed before, when it fails twice, and when it is about the
// pod.
func TestCheck(t *testing.T) {
	b := newBed(t, Report)
	pod := b.add("one", onBridge)
	b.clear(pod)
	b.CheckInterval = time.Hour
	b.refresh(b.now())
	p := b.pods[pod.key]
	said := func(err error) { b.take(answer{key: pod.key, held: true, said: err}) }
	moved := fmt.Errorf("CHECK: %w", wire.Errorf(100, "the address has moved"))
	named := func(want bool) {
		t.Helper()
		if got := b.named(pod); want != slices.Contains(got, PartCheck) {
			t.Errorf("named is %v, want it %t", got, want)
		}
	}
	said(moved)
	said(moved)
	named(false)
	if n := strings.Count(b.log.String(), "never passed"); n != 1 {
		t.Errorf("told %d times", n)
	}
	said(nil)
	for _, silent := range []error{
		errors.New("no executable"), wire.Errorf(wire.CodeTryAgainLater, "busy"), wire.Errorf(wire.CodeInvalidEnvironment, "unknown CNI_COMMAND: CHECK"),
	} {
		said(silent)
		said(silent)
		named(false)
	}
	said(moved)
	named(false)
	if wait := p.checkDue.Sub(b.now()); wait > checkAgain {
		t.Errorf("the second CHECK is in %v", wait)
	}
	said(nil)
	said(moved)
	named(false)
	said(moved)
	named(true)
	said(moved)
	if n := strings.Count(b.log.String(), "is not as it was made"); n != 1 {
		t.Errorf("told %d times", n)
	}
	said(nil)
	named(false)
	b.take(answer{key: pod.key, held: false, said: moved})
	b.take(answer{key: journal.Key{ContainerID: "gone"}, held: true, said: moved})
	named(false)
}

// CHECKs run beside the looks, one at a time, and at once when something is found.
func TestChecksRun(t *testing.T) {
	b := newBed(t, Report)
	pod, other := b.add("one", onBridge), b.add("other", byPTP)
	b.clear(pod, other)
	b.CheckInterval = 100 * time.Millisecond
	var checked atomic.Int64
	var wrong atomic.Bool
	b.engine.check = func(r *journal.Record) error {
		checked.Add(1)
		if r.Key() == other.key && wrong.Load() {
			return wire.Errorf(100, "the address has moved")
		}
		return nil
	}
	b.start()
	b.await("both have passed", func() bool { return b.looks() > 10 && checked.Load() > 3 })
	if all := b.Drifted(); len(all) > 0 {
		t.Errorf("drifted: %v", all)
	}
	b.await("CHECKs are counted", func() bool { return b.metric("crinet_drift_checks_total") > 3 })
	wrong.Store(true)
	b.await("what CHECK says", func() bool { return slices.Contains(b.named(other), PartCheck) })
	wrong.Store(false)
	b.await("the end", func() bool { return len(b.Drifted()) == 0 })
	if b.named(pod) != nil {
		t.Errorf("the other pod is drifted: %v", b.named(pod))
	}
}

// A sandbox that the runtime does not have any more, or is being removed, is not drifted.
func TestWhatGoesIsNotDrifted(t *testing.T) {
	b := newBed(t, Report)
	gone, removed := b.add("gone", onBridge), b.add("removed", onBridge)
	b.clear(gone, removed)
	b.engine.gone[gone.key.ContainerID] = true
	r := *b.engine.get(gone.key)
	r.Attachment.NetNS = "/run/netns/crinet-no-such"
	b.engine.put(&r)
	// A removal that takes long: the lock is held, and the interface is gone.
	lock := b.engine.lock(removed.key)
	lock.Lock()
	ip(t, &removed.sandbox, "link del eth0")
	b.start()
	b.rounds(10)
	if all := b.Drifted(); len(all) > 0 {
		t.Errorf("drifted: %v", all)
	}
	b.engine.forget(removed.key)
	lock.Unlock()
	b.rounds(10)
	if all := b.Drifted(); len(all) > 0 {
		t.Errorf("drifted: %v", all)
	}
}

// What a container adds to its own network is nobody's business.
func TestWhatContainersAddIsNoDrift(t *testing.T) {
	b := newBed(t, Report)
	pod := b.add("one", onBridge)
	b.clear(pod)
	b.start()
	ip(t, &pod.sandbox, `link add tun0 type veth peer name tun1
		address add 10.99.0.1/24 dev tun0
		link set tun0 up
		link set tun1 up
		route add 198.51.100.0/24 dev tun0
		route replace default dev tun0
		address add 10.20.99.99/32 dev eth0
		link set eth0 mtu 1400`)
	b.rounds(10)
	if all := b.Drifted(); len(all) > 0 {
		t.Errorf("drifted: %v", all)
	}
}

// living are the pods of TestNoFalseReports and the benchmark.
func (b *bed) living(n int) (all []*testPod) {
	for i := range n {
		conf := onBridge
		if i%3 == 2 {
			conf = byPTP
		}
		all = append(all, b.add(fmt.Sprint("living-", i), conf))
	}
	b.clear(all...)
	return all
}

// Thousands of looks at pods that live, while others come and go, find nothing. Threads
// and files stay as many as they were.
func TestNoFalseReports(t *testing.T) {
	const looks = 2000
	b := newBed(t, Recreate)
	var reaper sync.WaitGroup
	reaper.Go(func() { b.plugins.Run(t.Context()) })
	t.Cleanup(reaper.Wait) // its context ends before
	b.Interval, b.CheckInterval = 20*time.Millisecond, 50*time.Millisecond
	b.living(12)
	b.start()
	b.rounds(3)
	threads, goroutines := threadCount(t), runtime.NumGoroutine()
	for n := 0; b.looks() < looks; n++ {
		pod := b.add(fmt.Sprint("guest-", n), []string{onBridge, byPTP}[n%2])
		time.Sleep(time.Duration(n%5) * 10 * time.Millisecond) // it lives for a moment
		b.del(pod)
	}
	if all := b.Drifted(); len(all) > 0 || strings.Contains(b.log.String(), "not as it was made") {
		t.Errorf("drifted: %v", all)
	}
	if now := threadCount(t); now > threads+20 {
		t.Errorf("there are %d threads, there were %d", now, threads)
	}
	if now := runtime.NumGoroutine(); now > goroutines+20 {
		t.Errorf("there are %d goroutines, there were %d", now, goroutines)
	}
	t.Logf("%.0f looks, %v", b.looks(), b.log)
}

func threadCount(t testing.TB) int {
	t.Helper()
	return strings.Count(output(t, "ls", "-1", fmt.Sprintf("/proc/%d/task", syscall.Getpid())), "\n")
}

// BenchmarkRound is one look at each of 110 pods; the figure is the CPU time of that, and
// the share of one CPU if it is done every five seconds.
func BenchmarkRound(b *testing.B) {
	const pods = 110
	bed := newBed(b, Report)
	bed.living(pods)
	bed.Interval = 5 * time.Second
	bed.refresh(bed.now())
	var due []*pod
	for _, p := range bed.pods {
		due = append(due, p)
	}
	before := cpuTime(b)
	b.ResetTimer()
	for b.Loop() {
		for batch := range slices.Chunk(due, batch) {
			bed.look(b.Context(), batch)
		}
	}
	b.StopTimer()
	each := (cpuTime(b) - before) / time.Duration(b.N)
	b.ReportMetric(float64(each.Microseconds())/1000, "cpu-ms/round")
	b.ReportMetric(100*each.Seconds()/5, "%cpu")
	if all := bed.Drifted(); len(all) > 0 {
		b.Errorf("drifted: %v", all)
	}
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		t.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// A pod that somebody breaks again and again is repaired at growing intervals.
func TestRepairsBecomeRare(t *testing.T) {
	b := newBed(t, Repair)
	one := b.add("one", onBridge)
	b.clear(one)
	now := time.Now()
	b.now = func() time.Time { return now }
	b.Interval = time.Second
	b.refresh(now)
	p := b.pods[one.key]
	repairs, looks := 0.0, 0
	for ; looks < 600; looks++ {
		if b.metric("crinet_drift_repairs_total") > repairs || looks == 0 {
			repairs = b.metric("crinet_drift_repairs_total")
			ip(t, &one.sandbox, "route del default")
		}
		b.look(t.Context(), []*pod{p})
		now = now.Add(time.Second)
	}
	if repairs < quickRepairs || repairs > quickRepairs+12 {
		t.Errorf("%v repairs in %d seconds", repairs, looks)
	}
}
