package config

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/probe"
)

const (
	// DefaultPoll is how often a Watcher looks at the directories without having
	// been told of a change.
	DefaultPoll = time.Second
	// startPatience is how long NewWatcher waits for plugins that do not answer,
	// patience how long a change of a plugin waits for its answer, so that it is
	// one change. Both hold up everything else that the watcher does.
	startPatience = 30 * time.Second
	patience      = time.Second
)

// Prober finds the plugins; [probe.Prober] is one.
type Prober interface {
	Dirs() []string
	Probe(ctx context.Context, types []string, patience time.Duration) (*probe.Plugins, error)
	Answered() <-chan struct{}
	Stop()
}

// WatcherConfig is what a Watcher needs.
type WatcherConfig struct {
	ConfDir string // absolute
	Prober  Prober
	MTU     int // see ScanOptions.MTU
	// LastGoodFile is where the last good versions of the files are kept for the
	// next start; empty for nowhere. Its directory must exist.
	LastGoodFile string
	// OnChange, which may be nil, is called for each snapshot after the first
	// one, in order, one call at a time, when Snapshot returns it already. The
	// watcher waits for it.
	OnChange func(*Snapshot)
	Log      *slog.Logger
	Poll     time.Duration // between looks; 0 means DefaultPoll
}

// Stats are a Watcher's counters since it began.
type Stats struct {
	Scans    uint64 // of the conf dir
	Probes   uint64 // of the bin dirs
	Reloads  uint64 // scans and probes that changed anything
	Rearms   uint64 // times that inotify was set up
	LastScan time.Time
	// WatchError says why inotify does not tell of changes, or not of all that it
	// could; empty if it does. Changes are found all the same, at the next look.
	WatchError string
}

// Watcher keeps a Snapshot up to date. The truth is a fingerprint of the
// directories that it compares with the last one every second; inotify only
// says when to do so earlier.
type Watcher struct {
	cfg     WatcherConfig
	open    func() (*notifications, error) // seam: inotify
	running atomic.Bool
	current atomic.Pointer[Snapshot]
	store   *store
	seen    seen // by NewWatcher, then by Run

	mu    sync.Mutex // guards stats
	stats Stats
}

// seen is what the directories were like at the last look.
type seen struct {
	conf, bins *fingerprint
	good       map[string]*parsed // by file name
	loaded     *loaded
	plugins    *probe.Plugins
}

// NewWatcher scans and probes once, so that Snapshot has something to return.
// Whatever is wrong with directories, files and plugins is in the snapshot;
// the error is ctx's end.
func NewWatcher(ctx context.Context, cfg WatcherConfig) (*Watcher, error) {
	if cfg.Poll <= 0 {
		cfg.Poll = DefaultPoll
	}
	w := &Watcher{cfg: cfg, open: newNotifications, store: newStore(cfg.LastGoodFile, cfg.ConfDir, cfg.Log)}
	w.seen.good = w.store.load(ctx)
	if err := w.look(ctx, startPatience, false); err != nil {
		cfg.Prober.Stop()
		return nil, err
	}
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

// Run watches until ctx ends, and then returns nil. It looks at once, for what
// has changed since NewWatcher. Failures of inotify are logged and in Stats. An
// error means that Run is running already.
func (w *Watcher) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("the configuration watcher is running already")
	}
	defer w.running.Store(false)
	defer w.cfg.Prober.Stop()
	var keeping sync.WaitGroup
	defer keeping.Wait()
	keeping.Go(func() { w.store.run(ctx) })
	w.loop(ctx)
	return nil
}

// loop looks when something may have changed.
func (w *Watcher) loop(ctx context.Context) {
	hints := newHints(w.open)
	defer hints.end()
	settled := newDebounce()
	defer settled.timer.Stop()
	poll := time.NewTicker(w.cfg.Poll)
	defer poll.Stop()
	for answered := false; ctx.Err() == nil; {
		w.watch(ctx, hints)
		if w.look(ctx, patience, answered) != nil {
			return // ctx has ended
		}
		answered = false
		for waiting := true; waiting; {
			waiting = false
			select {
			case <-ctx.Done():
			case <-settled.timer.C:
				settled.fired(time.Now())
			case <-poll.C:
			case <-w.cfg.Prober.Answered():
				answered = true
			case <-hints.C:
				settled.event(time.Now())
				waiting = true
			}
		}
	}
}

// watch brings inotify's watches up to date, and reports when that fails or
// works again.
func (w *Watcher) watch(ctx context.Context, h *hints) {
	err := h.update(func() []string { return watchPaths(w.cfg.ConfDir, w.cfg.Prober.Dirs()) })
	before, now := "", ""
	if err != nil {
		now = err.Error()
	}
	w.count(func(s *Stats) {
		before = s.WatchError
		s.WatchError, s.Rearms = now, h.rearms
	})
	switch {
	case before == now:
	case err != nil:
		w.cfg.Log.WarnContext(ctx, "CNI directories are not fully watched; changes are found a little later", "every", w.cfg.Poll, "err", err)
	default:
		w.cfg.Log.InfoContext(ctx, "CNI directories are watched again")
	}
}

// look compares the directories with what they were, reads and asks what has
// changed, and publishes the outcome. answered says that plugins have answered
// since the last look. The error is ctx's.
func (w *Watcher) look(ctx context.Context, patience time.Duration, answered bool) error {
	conf := printConf(w.cfg.ConfDir) // before it is read: what changes then differs next time
	read := !conf.same(w.seen.conf)
	if read {
		w.seen.loaded = load(ReadDir(w.cfg.ConfDir), w.seen.good)
		w.seen.good = w.seen.loaded.good()
		w.seen.conf = conf
		w.count(func(s *Stats) { s.Scans++; s.LastScan = time.Now() })
	}
	types := w.seen.loaded.types()
	bins := printBins(w.cfg.Prober.Dirs(), types)
	probed := answered || !bins.same(w.seen.bins)
	if probed {
		plugins, err := w.cfg.Prober.Probe(ctx, types, patience)
		if err != nil {
			w.seen.conf = nil // it is not published
			return err
		}
		w.seen.plugins, w.seen.bins = plugins, bins
		w.count(func(s *Stats) { s.Probes++ })
	}
	if read || probed {
		w.publish(ctx, w.seen.loaded.snapshot(w.seen.plugins, ScanOptions{MTU: w.cfg.MTU}))
	}
	if read {
		w.store.keep(w.seen.good)
	}
	return nil
}

// publish makes next the snapshot, and tells of it if it differs.
func (w *Watcher) publish(ctx context.Context, next *Snapshot) {
	prev := w.current.Load()
	switch {
	case prev == nil:
		next.Generation, next.Changed, next.Why = 1, time.Now(), "start"
	case next.same(prev):
		next.Generation, next.Changed, next.Why = prev.Generation, prev.Changed, prev.Why
		w.current.Store(next)
		return
	default:
		next.Generation, next.Changed, next.Why = prev.Generation+1, time.Now(), why(prev, next)
	}
	w.count(func(s *Stats) { s.Reloads++ })
	w.current.Store(next)
	w.logChange(ctx, prev, next)
	if prev != nil && w.cfg.OnChange != nil {
		w.cfg.OnChange(next)
	}
}
