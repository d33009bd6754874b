package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/config"
)

// statusBench is a plugin whose network's STATUS does what a file says.
type statusBench struct {
	*Plugin
	t        *testing.T
	dir      string
	selected atomic.Pointer[config.Network]
	cidrs    atomic.Pointer[[]netip.Prefix]
	clock    atomic.Int64 // seconds that time is ahead
}

// statusScript logs that it runs and that it has ended, and does in between what
// the file named after the network has: its text is shell.
const statusScript = `#!/bin/sh
name=$(sed 's/.*"name":"\([a-z]*\)".*/\1/')
echo "+$name" >>%[1]s/log
. %[1]s/$name
echo "-$name" >>%[1]s/log
`

func newStatusBench(t *testing.T, grace time.Duration) *statusBench {
	t.Helper()
	b := &statusBench{t: t, dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(b.dir, "plug"), fmt.Appendf(nil, statusScript, b.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	b.cidrs.Store(&[]netip.Prefix{})
	b.Plugin = New(Config{
		BinDirs: []string{b.dir}, CacheDir: b.dir, Timeout: 2 * time.Second, StatusGrace: grace,
		Selected: func() (*config.Network, error) {
			if n := b.selected.Load(); n != nil {
				return n, nil
			}
			return nil, errors.New("nothing is selected")
		},
		PodCIDRs: func() []netip.Prefix { return *b.cidrs.Load() },
		Runner:   pluginexec.New(pluginexec.Config{}), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	b.status.every, b.status.retry, b.status.first = 20*time.Millisecond, 10*time.Millisecond, 10*time.Millisecond
	b.status.now = func() time.Time { return time.Now().Add(time.Duration(b.clock.Load()) * time.Second) }
	return b
}

func (b *statusBench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.RunStatus(ctx) }()
	b.t.Cleanup(sync.OnceFunc(func() { cancel(); <-done }))
}

// does says what a network's STATUS does from now on.
func (b *statusBench) does(network, shell string) {
	b.t.Helper()
	file := filepath.Join(b.dir, network)
	if err := os.WriteFile(file+".new", []byte(shell+"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		b.t.Fatal(err)
	}
}

func (b *statusBench) choose(network, version string) {
	b.selected.Store(&config.Network{Name: network, CNIVersion: version,
		ConfList: fmt.Appendf(nil, `{"cniVersion":%q,"name":%q,"plugins":[{"type":"plug"}]}`, version, network)})
	b.SelectionChanged()
}

func (b *statusBench) await(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not seen: %s; report %+v, Status %v", what, b.StatusReport(), b.Status())
		}
	}
}

// more waits for some more answers.
func (b *statusBench) more() {
	b.t.Helper()
	before, _ := b.StatusCounts()
	b.await("more answers", func() bool { n, _ := b.StatusCounts(); return n >= before+3 })
}

func (b *statusBench) log() string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		b.t.Fatal(err)
	}
	return string(text)
}

const (
	good = "true"
	sick = `echo '{"cniVersion":"1.1.0","code":50,"msg":"the moon is full"}'; exit 1`
	weak = `echo '{"cniVersion":"1.1.0","code":51,"msg":"half a moon"}'; exit 1`
)

func (b *statusBench) refuses(words ...string) bool {
	err := b.Status()
	if err == nil {
		return false
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			b.t.Errorf("Status says %v, want it to say %q", err, word)
		}
	}
	return true
}

// At the start the first answer counts; later the grace protects from flapping.
func TestStatusGrace(t *testing.T) {
	t.Parallel()
	b := newStatusBench(t, time.Hour)
	b.does("net", sick)
	b.choose("net", "1.1.0")
	if err := b.Status(); err != nil {
		t.Errorf("before any answer: %v", err)
	}
	b.run()
	b.await("the first answer counts", func() bool {
		return b.refuses("net", "plug", "no pod can be added (CNI code 50)", "the moon is full")
	})
	b.does("net", weak)
	b.await("another reason", func() bool {
		err := b.Status()
		return err != nil && strings.Contains(err.Error(), "running pods may have limited connectivity (CNI code 51)") && strings.Contains(err.Error(), "half a moon")
	})
	b.does("net", good)
	b.await("ready", func() bool { return b.Status() == nil })
	b.does("net", sick)
	b.more()
	if err := b.Status(); err != nil {
		t.Errorf("within the grace: %v", err)
	}
	if report := b.StatusReport(); report.Err == nil || report.NotReady || report.FailingSince.IsZero() {
		t.Errorf("report %+v, want one of a failure that does not count yet", report)
	}
	b.clock.Store(3601)
	b.await("after the grace", func() bool { return b.refuses("the moon is full") })
	b.does("net", good)
	b.await("ready", func() bool { return b.Status() == nil })
	// The next failure has a grace of its own.
	b.does("net", sick)
	b.more()
	if err := b.Status(); err != nil {
		t.Errorf("within the second grace: %v", err)
	}
}

// A newly selected network is asked at once, and the old one's answer is
// forgotten; there is never more than one STATUS at work.
func TestStatusOfAnotherNetwork(t *testing.T) {
	t.Parallel()
	b := newStatusBench(t, time.Hour)
	b.status.every = time.Hour // nothing but the selection makes it ask
	b.does("slow", "sleep 300")
	b.does("sick", sick)
	b.does("good", good)
	b.choose("sick", "1.1.0")
	b.run()
	b.await("the first's answer", func() bool { return b.Status() != nil })
	b.choose("good", "1.1.0")
	if err := b.Status(); err != nil {
		t.Errorf("the other network has the first's answer: %v", err)
	}
	b.await("the other's answer", func() bool { return b.StatusReport().Network == "good" && b.StatusReport().Err == nil })
	b.choose("slow", "1.1.0")
	b.await("the slow one is asked", func() bool { return strings.HasSuffix(b.log(), "+slow\n") })
	b.choose("sick", "1.1.0")
	b.await("the slow one is not waited for", func() bool { return b.StatusReport().Network == "sick" && b.Status() != nil })
	if log := b.log(); !strings.HasSuffix(log, "+slow\n+sick\n") {
		t.Errorf("calls:\n%s\nwant the slow one cut off by the last", log)
	}
	// Every event is no reason to ask again.
	before := b.log()
	for range 20 {
		b.SelectionChanged()
	}
	b.choose("good", "1.1.0")
	b.await("the last's answer", func() bool { return b.StatusReport().Network == "good" })
	if log := b.log(); log != before+"+good\n-good\n" {
		t.Errorf("calls:\n%s\nwant one more for good after\n%s", log, before)
	}
}

// A plugin that hangs is killed after the time limit, and that is a failure.
func TestStatusThatHangs(t *testing.T) {
	t.Parallel()
	b := newStatusBench(t, time.Hour)
	b.config.Timeout = 200 * time.Millisecond
	b.does("net", "sleep 300")
	b.choose("net", "1.1.0")
	b.run()
	b.await("the time limit", func() bool { return b.refuses("--cni-timeout is 200ms", "plug") })
}

// Networks before CNI 1.1 have no STATUS; one without a pod CIDR is not asked.
func TestStatusIsNotAsked(t *testing.T) {
	t.Parallel()
	b := newStatusBench(t, 0)
	b.does("net", sick)
	b.choose("net", "1.0.0")
	b.run()
	time.Sleep(10 * b.status.every) // nothing must happen
	if err := b.Status(); err != nil || b.log() != "" {
		t.Errorf("a network of CNI 1.0.0 was asked: %v, %s", err, b.log())
	}
	b.selected.Store(&config.Network{Name: "net", CNIVersion: "1.1.0", NeedsPodCIDR: true, File: "10-net.conflist",
		ConfList: []byte(`{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"plug"}]}`)})
	b.SelectionChanged()
	if !b.refuses("pod CIDR", "10-net.conflist", "UpdateRuntimeConfig") {
		t.Error("a network that needs the pod CIDR is ready without")
	}
	if _, err := b.Plan(Attachment{}); err == nil || !strings.Contains(err.Error(), "pod CIDR") {
		t.Errorf("Plan: %v, want an error that names the pod CIDR", err)
	}
	time.Sleep(10 * b.status.every)
	if b.log() != "" {
		t.Errorf("it was asked before it has a pod CIDR: %s", b.log())
	}
	b.cidrs.Store(&[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	b.await("it is asked when it has one", func() bool { return b.refuses("the moon is full") })
}

func TestReady(t *testing.T) {
	t.Parallel()
	b := newStatusBench(t, 0)
	b.config.Ready = func(n *config.Network) error { return errors.New("no daemon for " + n.Name) }
	b.choose("net", "1.0.0")
	if !b.refuses(`network "net": no daemon for net`) {
		t.Error("a network is ready whose daemon does not run")
	}
}

// After a boot the first answer is awaited, good or not; networks without STATUS do not
// wait.
func TestStatusIsAwaitedAfterABoot(t *testing.T) {
	t.Parallel()
	b := newStatusBench(t, time.Hour)
	b.config.AwaitStatus = true
	old := &config.Network{Name: "old", CNIVersion: "1.0.0", ConfList: []byte(`{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"plug"}]}`)}
	b.selected.Store(old)
	if err := b.Status(); err != nil || !b.StatusWaits().IsZero() {
		t.Errorf("a network without STATUS: %v, since %v", err, b.StatusWaits())
	}
	b.selected.Store(&config.Network{Name: "first", CNIVersion: "1.1.0", ConfList: []byte(`{"cniVersion":"1.1.0","name":"first","plugins":[{"type":"plug"}]}`)})
	if err := b.Status(); err == nil || !strings.Contains(err.Error(), `waiting for the first answer of network "first" to STATUS since `) || b.StatusWaits().IsZero() {
		t.Errorf("before the first answer: %v, since %v", err, b.StatusWaits())
	}
	if err := os.WriteFile(filepath.Join(b.dir, "first"), []byte(`echo '{"cniVersion":"1.1.0","code":50,"msg":"the agent is late"}'; exit 1`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.RunStatus(ctx) })
	defer running.Wait()
	defer end()
	await := func(what string, holds func(error) bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if err := b.Status(); holds(err) {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	await("the agent is late", func(err error) bool {
		if err == nil {
			t.Fatal("ready while the agent is late")
		}
		return strings.Contains(err.Error(), "waiting for the network's STATUS since ") && strings.Contains(err.Error(), "the agent is late")
	})
	if b.StatusWaits().IsZero() {
		t.Error("not ready by STATUS, and it waits since never")
	}
	if err := os.WriteFile(filepath.Join(b.dir, "first"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	await("the agent is there", func(err error) bool { return err == nil })
	if !b.StatusWaits().IsZero() {
		t.Errorf("ready, and it waits since %v", b.StatusWaits())
	}
}
