package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/probe"
)

// DefaultPoll is how often a Watcher looks without having been told of a
// change: some file systems give no events, and a mount over a directory none.
const DefaultPoll = 30 * time.Second

// maxLogged is how many problems are logged at one change.
const maxLogged = 20

// Prober finds the plugins; [probe.Prober] is one.
type Prober interface {
	Dirs() []string
	Probe(ctx context.Context) (*probe.Plugins, error)
}

// WatcherConfig is what a Watcher needs.
type WatcherConfig struct {
	ConfDir string // absolute
	Prober  Prober
	MTU     int // see ScanOptions.MTU
	// OnChange, which may be nil, is called for each snapshot after the first
	// one, in order, one call at a time, when Snapshot returns it already. The
	// watcher waits for it.
	OnChange func(*Snapshot)
	Log      *slog.Logger
	Poll     time.Duration // 0 means DefaultPoll
}

// Stats are a Watcher's counters since it began.
type Stats struct {
	Scans    uint64 // of the conf dir
	Probes   uint64 // of the bin dirs, finished ones
	Reloads  uint64 // scans and probes that changed anything
	Rearms   uint64 // times that the watches were made anew
	LastScan time.Time
	// WatchError says why changes are seen by polling only, or not all of them
	// at once; empty if all is well.
	WatchError string
}

// Watcher keeps a Snapshot up to date.
type Watcher struct {
	cfg     WatcherConfig
	open    func() (*notifications, error) // seam: inotify
	running atomic.Bool
	current atomic.Pointer[Snapshot]

	mu    sync.Mutex
	stats Stats
}

// NewWatcher probes and scans once, so that Snapshot has something to return.
// Whatever is wrong with directories, files and plugins is in the snapshot;
// the error is ctx's end.
func NewWatcher(ctx context.Context, cfg WatcherConfig) (*Watcher, error) {
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	w := &Watcher{cfg: cfg, open: newNotifications}
	plugins, err := cfg.Prober.Probe(ctx)
	if err != nil {
		return nil, err
	}
	w.count(func(s *Stats) { s.Probes++ })
	w.scan(ctx, plugins)
	return w, nil
}

// Snapshot returns the newest snapshot at once.
func (w *Watcher) Snapshot() *Snapshot { return w.current.Load() }

// Stats returns the counters.
func (w *Watcher) Stats() Stats {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stats
}

func (w *Watcher) count(f func(*Stats)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.stats)
}

// Run watches until ctx ends, and then returns nil. It scans at once, for what
// has changed since NewWatcher. Failures to watch are logged and in Stats; the
// poll goes on, and watching is tried again. An error means that Run is
// running already.
func (w *Watcher) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("the configuration watcher is running already")
	}
	defer w.running.Store(false)
	l := newLoop(w)
	defer l.stop()
	l.dirty = inConf | inBin
	l.look(ctx)
	for ctx.Err() == nil {
		l.wait(ctx)
	}
	return nil
}

// scan reads the conf dir and publishes what it makes of it with plugins.
func (w *Watcher) scan(ctx context.Context, plugins *probe.Plugins) {
	prev := w.current.Load()
	next := Scan(ReadDir(w.cfg.ConfDir), plugins, prev, ScanOptions{MTU: w.cfg.MTU})
	now := time.Now()
	changed := prev == nil || !next.same(prev)
	switch {
	case prev == nil:
		next.Generation, next.Changed, next.Why = 1, now, "start"
	case changed:
		next.Generation, next.Changed, next.Why = prev.Generation+1, now, why(prev, next)
	default:
		next.Generation, next.Changed, next.Why = prev.Generation, prev.Changed, prev.Why
	}
	w.count(func(s *Stats) {
		s.Scans++
		s.LastScan = now
		if changed {
			s.Reloads++
		}
	})
	w.current.Store(next)
	if !changed {
		return
	}
	w.logChange(ctx, prev, next)
	if prev != nil && w.cfg.OnChange != nil {
		w.cfg.OnChange(next)
	}
}

// logChange logs what is new in next.
func (w *Watcher) logChange(ctx context.Context, prev, next *Snapshot) {
	if prev == nil {
		prev = &Snapshot{}
	}
	networks := make([]string, len(next.Networks))
	for i, n := range next.Networks {
		networks[i] = n.String()
	}
	w.cfg.Log.InfoContext(ctx, "CNI network configurations read", "dir", next.Dir, "generation", next.Generation,
		"why", next.Why, "networks", networks, "problems", len(next.Problems))
	if next.DirReason != prev.DirReason && next.DirReason != "" {
		w.cfg.Log.WarnContext(ctx, "CNI conf dir cannot be read", "dir", next.Dir, "reason", next.DirReason)
	}
	for i, p := range newProblems(prev, next) {
		if i == maxLogged {
			w.cfg.Log.WarnContext(ctx, "more CNI network configurations cannot be used; crinetctl status lists them all", "dir", next.Dir)
			break
		}
		w.cfg.Log.WarnContext(ctx, "CNI network configuration cannot be used as it is", "file", p.File, "network", p.Network,
			"kind", string(p.Kind), "reason", p.String())
	}
	w.logPlugins(ctx, prev.Plugins, next.Plugins)
}

// logPlugins logs bin dirs that cannot be read and files that are no plugins.
func (w *Watcher) logPlugins(ctx context.Context, prev, next *probe.Plugins) {
	known := map[string]bool{}
	for _, d := range prev.Dirs() {
		known[fmt.Sprint(d)] = true
	}
	for _, d := range next.Dirs() {
		if d.Reason != "" && !known[fmt.Sprint(d)] {
			w.cfg.Log.WarnContext(ctx, "CNI bin dir cannot be searched", "dir", d.Path, "reason", d.Reason)
		}
	}
	for _, p := range prev.All() {
		known[p.Path+"\n"+p.Reason] = true
	}
	logged := 0
	for _, p := range next.All() {
		if p.Usable() || p.Name == probe.ShimType || known[p.Path+"\n"+p.Reason] || logged == maxLogged {
			continue
		}
		logged++
		w.cfg.Log.WarnContext(ctx, "file in a CNI bin dir is no usable plugin", "plugin", p.Path, "reason", p.Reason)
	}
}
