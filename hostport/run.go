package hostport

import (
	"context"
	"sync"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// quiet is how long somebody else's change may take to be complete before the
	// kernel is looked at.
	quiet = 2 * time.Millisecond
	// A table that others break again and again is put right at growing intervals, up
	// to maxPause; after calm of that length the first repair counts anew.
	minPause = 25 * time.Millisecond
	maxPause = time.Second
	// retryAfter is the time before the first repetition when the kernel refuses.
	retryAfter = 250 * time.Millisecond
)

// Run keeps the kernel equal to the desired state until ctx ends: it listens for
// changes by others and puts them right within milliseconds, and compares in
// intervals besides. It may be started before Sync, and does nothing until then.
// If listening fails, that is logged, and tried again.
func (m *Manager) Run(ctx context.Context) {
	var listeners sync.WaitGroup
	listeners.Go(func() {
		m.listen(ctx, "the hostPort table", func(ctx context.Context) error {
			return m.host.WatchTable(ctx, func(what string) { raise(m.alarms, what) })
		})
	})
	if len(m.protected) > 0 {
		listeners.Go(func() {
			m.listen(ctx, "the addresses that hostPorts must not translate", func(ctx context.Context) error {
				return m.host.WatchAddresses(ctx, m.protected, func(what string) { raise(m.moved, what) })
			})
		})
	}
	defer listeners.Wait()

	timer := time.NewTimer(m.interval)
	defer timer.Stop()
	p := newPacer(m.interval)
	for {
		var alarm string
		select {
		case <-ctx.Done():
			return
		case <-m.moved:
			if !backoff.Sleep(ctx, quiet) {
				return
			}
			if err := m.protect(ctx); err != nil {
				m.log.ErrorContext(ctx, "addresses of Services may be translated for now", "error", err)
				raise(m.alarms, "a change of protected addresses failed")
			}
			timer.Reset(min(nodePortDelay, m.interval))
			continue
		case <-timer.C:
		case alarm = <-m.alarms:
			if !backoff.Sleep(ctx, quiet) {
				return
			}
		}
		healed, err := m.check(ctx, alarm)
		if !backoff.Sleep(ctx, p.pause(time.Now(), healed)) {
			return
		}
		timer.Reset(p.next(err))
	}
}

// listen runs watch until ctx ends, again at growing intervals when it fails. It
// begins each time with an alarm, since something may have been missed.
func (m *Manager) listen(ctx context.Context, what string, watch func(context.Context) error) {
	p := newPacer(m.interval)
	for {
		began := time.Now()
		err := watch(ctx)
		if ctx.Err() != nil {
			return
		}
		m.log.ErrorContext(ctx, "changes by others are noticed only in intervals for now",
			"what", what, "interval", m.interval, "error", err)
		if time.Since(began) > m.interval {
			p.retries.Reset()
		}
		if !backoff.Sleep(ctx, p.next(err)) {
			return
		}
	}
}

// pacer sets the times between checks.
type pacer struct {
	interval time.Duration
	healed   time.Time
	pauses   backoff.Backoff // while others break the table
	retries  backoff.Backoff // while the kernel refuses
}

func newPacer(interval time.Duration) *pacer {
	return &pacer{
		interval: interval,
		pauses:   backoff.Backoff{First: minPause, Max: maxPause},
		retries:  backoff.Backoff{First: min(retryAfter, interval), Max: interval},
	}
}

// pause is how long to wait after a check before alarms count again: nothing,
// unless somebody breaks the table again and again.
func (p *pacer) pause(now time.Time, healed bool) time.Duration {
	if !healed {
		return 0
	}
	again := now.Sub(p.healed) < 2*maxPause
	p.healed = now
	if !again {
		p.pauses.Reset()
		return 0
	}
	return p.pauses.Next()
}

// next is when to check again without an alarm, after a check with this outcome.
func (p *pacer) next(err error) time.Duration {
	if err == nil {
		p.retries.Reset()
		return p.interval
	}
	return p.retries.Next()
}
