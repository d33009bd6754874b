package config

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/crinet-project/crinet/probe"
)

const (
	// Watching that failed is tried again after minRearm, then ever later.
	minRearm = time.Second
	maxRearm = time.Minute
	// Busy plugins are probed again after minRetry, then ever later.
	minRetry = 250 * time.Millisecond
	maxRetry = 30 * time.Second
)

// loop is the state of Watcher.Run.
type loop struct {
	w        *Watcher
	guard    *guard
	dirty    interest // what has to be looked at
	debounce *debounce
	poll     *time.Ticker
	rearm    *backoff
	retry    *backoff

	plugins *probe.Plugins
	probed  chan *probe.Plugins // what a probe found, or nil
	probing bool
	wg      sync.WaitGroup
}

func newLoop(w *Watcher) *loop {
	return &loop{
		w: w,
		guard: &guard{open: w.open, make: func() plan {
			return newPlan(w.cfg.ConfDir, w.cfg.Prober.Dirs())
		}},
		debounce: newDebounce(),
		poll:     time.NewTicker(w.cfg.Poll),
		rearm:    newBackoff(minRearm, maxRearm),
		retry:    newBackoff(minRetry, maxRetry),
		plugins:  w.Snapshot().Plugins,
		probed:   make(chan *probe.Plugins, 1),
	}
}

// stop ends everything that the loop began. A probe ends with Run's ctx.
func (l *loop) stop() {
	l.poll.Stop()
	l.rearm.timer.Stop()
	l.retry.timer.Stop()
	l.debounce.timer.Stop()
	l.guard.stop()
	l.guard.closing.Wait()
	l.wg.Wait()
}

// wait waits for one thing to happen and deals with it.
func (l *loop) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case ev, ok := <-l.guard.events():
		l.event(ev, ok)
	case err, ok := <-l.guard.errs():
		l.failed(ctx, err, ok)
	case <-l.debounce.C:
		l.debounce.fired()
		l.look(ctx)
	case <-l.poll.C:
		l.dirty |= inConf | inBin
		l.look(ctx)
	case <-l.rearm.timer.C:
		l.dirty |= inConf | inBin
		l.look(ctx)
	case <-l.retry.timer.C:
		l.dirty |= inBin
		l.look(ctx)
	case plugins := <-l.probed:
		l.probeDone(ctx, plugins)
	}
}

func (l *loop) event(ev fsnotify.Event, ok bool) {
	if !ok {
		l.guard.stop()
		l.mark(inConf | inBin)
		return
	}
	if in := l.guard.match(ev); in != 0 {
		l.mark(in)
	}
}

// failed deals with lost events, of which a storm makes some, and with an
// inotify instance that is broken: everything is looked at and watched anew.
func (l *loop) failed(ctx context.Context, err error, ok bool) {
	if err != nil && !errors.Is(err, fsnotify.ErrEventOverflow) {
		l.w.cfg.Log.WarnContext(ctx, "watching the CNI directories failed; it is set up anew", "error", err)
	}
	l.guard.lost = true
	if !ok {
		l.guard.stop()
	}
	l.mark(inConf | inBin)
}

// mark notes that something has to be looked at soon.
func (l *loop) mark(in interest) {
	l.dirty |= in
	l.debounce.event(time.Now())
}

// look brings the watches up to date, and then looks at what is dirty: the
// conf dir at once, the bin dirs in the background, because a plugin may hang.
func (l *loop) look(ctx context.Context) {
	l.watch(ctx)
	if l.dirty&inConf != 0 {
		l.dirty &^= inConf
		l.w.scan(ctx, l.plugins)
	}
	if l.dirty&inBin != 0 && !l.probing {
		l.dirty &^= inBin
		l.probing = true
		l.wg.Go(func() {
			plugins, err := l.w.cfg.Prober.Probe(ctx)
			if err != nil {
				plugins = nil // ctx has ended, and Run with it
			}
			l.probed <- plugins
		})
	}
}

func (l *loop) probeDone(ctx context.Context, plugins *probe.Plugins) {
	l.probing = false
	if plugins == nil {
		return
	}
	l.w.count(func(s *Stats) { s.Probes++ })
	if plugins.Busy() {
		l.retry.again()
	} else {
		l.retry.reset()
	}
	if !plugins.Equal(l.plugins) {
		l.plugins = plugins
		l.dirty |= inConf
	}
	if l.dirty != 0 {
		l.look(ctx)
	}
}

// watch brings the watches up to date, reports when that fails or works again,
// and sees to it that it is tried again.
func (l *loop) watch(ctx context.Context) {
	err := l.guard.update()
	before, now := "", ""
	if err != nil {
		now = err.Error()
		l.rearm.again()
	} else {
		l.rearm.reset()
	}
	l.w.count(func(s *Stats) {
		before = s.WatchError
		s.WatchError, s.Rearms = now, l.guard.rearms
	})
	switch {
	case before == now:
	case err != nil:
		l.w.cfg.Log.WarnContext(ctx, "CNI directories are not fully watched; they are polled", "every", l.w.cfg.Poll, "error", err)
	default:
		l.w.cfg.Log.InfoContext(ctx, "CNI directories are watched again")
	}
}

// backoff is a timer that is set ever later.
type backoff struct {
	timer             *time.Timer
	first, most, next time.Duration
	set               time.Time // when it ticks; zero if it is not set
}

func newBackoff(first, most time.Duration) *backoff {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &backoff{timer: t, first: first, most: most, next: first}
}

// again sets the timer, unless it is set already.
func (b *backoff) again() {
	if now := time.Now(); b.set.Before(now) {
		b.timer.Reset(b.next)
		b.set = now.Add(b.next)
		b.next = min(2*b.next, b.most)
	}
}

// reset stops the timer and begins from the start.
func (b *backoff) reset() {
	b.timer.Stop()
	b.set, b.next = time.Time{}, b.first
}
