package config

import (
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// A change is looked at minSettle after its first event, so that what belongs
	// to it is there too. While events do not pause for quietTime, the next ones
	// are looked at ever later, up to maxSettle: a storm costs few looks.
	minSettle = 100 * time.Millisecond
	maxSettle = 800 * time.Millisecond
	quietTime = 50 * time.Millisecond
)

// debounce turns bursts of events into few ticks of timer.
type debounce struct {
	timer *time.Timer
	wait  backoff.Backoff
	set   bool      // the timer is
	last  time.Time // event
}

func newDebounce() *debounce {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &debounce{timer: t, wait: backoff.Backoff{First: minSettle, Max: maxSettle}}
}

// event notes an event at now.
func (d *debounce) event(now time.Time) {
	d.last = now
	if !d.set {
		d.timer.Reset(d.wait.Next())
		d.set = true
	}
}

// fired notes a tick at now.
func (d *debounce) fired(now time.Time) {
	d.set = false
	if now.Sub(d.last) > quietTime {
		d.wait.Reset()
	}
}
