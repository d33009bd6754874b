package integration_test

import (
	"bufio"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/crinet-project/crinet/integration/history"
)

// sampleEvery is how often a soak is measured.
const sampleEvery = 5 * time.Second

// soakReport is the folder that SOAK_REPORT names, to which the tests of a soak write a
// report; empty if none is asked for.
func soakReport() string { return os.Getenv("SOAK_REPORT") }

// sampler measures crinetd and the kernel while a test runs. close may be called on nil.
type sampler struct {
	stop context.CancelFunc
	done chan struct{}
}

func (n *testNode) startSampler(to *history.Recorder) *sampler {
	ctx, stop := context.WithCancel(n.ctx)
	s := &sampler{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		ticker := time.NewTicker(sampleEvery)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if sample := n.sample(ctx); ctx.Err() == nil {
				to.Add(history.Event{Kind: history.Sampled, Sample: sample})
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}()
	return s
}

func (s *sampler) close() {
	if s != nil {
		s.stop()
		<-s.done
	}
}

// sample measures. What cannot be measured, as while crinetd is away, is left out.
func (n *testNode) sample(ctx context.Context) map[string]float64 {
	const mb = 1 << 20
	sample := make(map[string]float64)
	if text, err := n.Metrics(ctx); err == nil {
		values := make(map[string]float64)
		for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), " ")
			if v, err := strconv.ParseFloat(value, 64); err == nil {
				values[name] = v
			}
		}
		sample[history.SampleRSS] = values["process_resident_memory_bytes"] / mb
		sample[history.SampleHeap] = values["go_memstats_heap_inuse_bytes"] / mb
		sample[history.SampleGoroutines] = values["go_goroutines"]
		sample[history.SampleFDs] = values["process_open_fds"]
	}
	lines := func(name, command string, args ...string) {
		if out, err := n.Run(ctx, command, args...); err == nil {
			sample[name] = float64(strings.Count(out, "\n"))
		}
	}
	lines(history.SampleLinks, "ip", "-o", "link")
	lines(history.SampleElements, "nft", "list", "table", "inet", "crinet")
	if entries, err := os.ReadDir(n.Path("/run/netns")); err == nil {
		sample[history.SampleNetNS] = float64(len(entries))
	}
	if out, err := n.Run(ctx, "cat", "/proc/sys/net/netfilter/nf_conntrack_count"); err == nil {
		if v, err := strconv.ParseFloat(strings.TrimSpace(out), 64); err == nil {
			sample[history.SampleConntrack] = v
		}
	}
	sample[history.SampleState] = float64(n.stateBytes()) / (1 << 10)
	return sample
}

// stateBytes is the size of all files in crinetd's state dir, but of those that go while
// it looks.
func (n *testNode) stateBytes() (sum int64) {
	_ = filepath.WalkDir(n.Path("/var/lib/crinet"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil
		}
		if info, err := entry.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}

// reportSoak writes NAME.md and NAME.svg to the folder of reports, if there is one.
func (n *testNode) reportSoak(events []history.Event, violations int) {
	n.t.Helper()
	dir := soakReport()
	if dir == "" {
		return
	}
	n.ok(os.MkdirAll(dir, 0o755))
	name := n.t.Name()
	summary := history.Summarize(events)
	n.ok(os.WriteFile(filepath.Join(dir, name+".md"), summary.Markdown(name, name+".svg", violations), 0o644))
	n.ok(os.WriteFile(filepath.Join(dir, name+".svg"), summary.SVG(name), 0o644))
	n.t.Logf("report: %s", filepath.Join(dir, name+".md"))
}
