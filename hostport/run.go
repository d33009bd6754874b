package hostport

import (
	"context"
	"sync"
	"time"
)

const (
	// settle is how long a change of somebody else's may take to be complete
	// before the table is looked at.
	settle = 2 * time.Millisecond
	// A table that others break again and again is put right at growing
	// intervals, up to maxPause; after calm of that length the first one counts anew.
	minPause = 25 * time.Millisecond
	maxPause = time.Second
	// retryAfter is the time between attempts when the kernel refuses, at first.
	retryAfter = 250 * time.Millisecond
)

// Run keeps the table equal to the Manager's memory until ctx ends: it listens for
// changes by others and puts them right, within some milliseconds, and compares
// in intervals besides. It may be started before Sync, and does nothing until
// then. Where nobody can be listened to, that is logged, and tried again.
func (m *Manager) Run(ctx context.Context) {
	var listener sync.WaitGroup
	listener.Go(func() { m.listen(ctx) })
	defer listener.Wait()

	check := time.NewTimer(m.interval)
	defer check.Stop()
	p := pacer{interval: m.interval}
	for {
		var alarm string
		select {
		case <-ctx.Done():
			return
		case <-check.C:
		case alarm = <-m.alarms:
			// What follows at once belongs to it.
			if !sleep(ctx, settle) {
				return
			}
		}
		healed, err := m.check(ctx, alarm)
		if !sleep(ctx, p.pause(time.Now(), healed)) {
			return
		}
		check.Reset(p.next(err))
	}
}

// check looks at the table and puts it right.
func (m *Manager) check(ctx context.Context, alarm string) (healed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.managing {
		return false, nil
	}
	changed, err := m.restore(ctx)
	if err != nil || changed == "" {
		return false, err
	}
	if alarm != "" {
		changed += "; seen first: " + alarm
	}
	m.heal(ctx, changed)
	return true, nil
}

// heal tells that the table was put right.
func (m *Manager) heal(ctx context.Context, reason string) {
	m.log.WarnContext(ctx, "the hostPort table was changed by somebody else and has been put right", "reason", reason)
	m.onHeal(reason)
}

// pacer sets the times between checks.
type pacer struct {
	interval time.Duration
	healed   time.Time
	paused   time.Duration
	retry    time.Duration
}

// pause is how long to wait after a check before alarms count again: nothing,
// unless somebody breaks the table again and again.
func (p *pacer) pause(now time.Time, healed bool) time.Duration {
	if !healed {
		return 0
	}
	if now.Sub(p.healed) < 2*maxPause {
		p.paused = min(max(2*p.paused, minPause), maxPause)
	} else {
		p.paused = 0
	}
	p.healed = now
	return p.paused
}

// next is when to check again without an alarm, after a check with this outcome.
func (p *pacer) next(err error) time.Duration {
	if err == nil {
		p.retry = 0
		return p.interval
	}
	p.retry = min(max(2*p.retry, retryAfter), p.interval)
	return p.retry
}

// sleep waits; it says no if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
