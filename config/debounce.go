package config

import "time"

const (
	// quietTime without events ends a burst.
	quietTime = 50 * time.Millisecond
	// A burst is cut after minBurst, a longer one in growing parts up to
	// maxBurst, so that a storm costs few scans and holds nothing up.
	minBurst = 200 * time.Millisecond
	maxBurst = 2 * time.Second
)

// debounce turns bursts of events into few ticks of C.
type debounce struct {
	C     <-chan time.Time
	timer *time.Timer
	began time.Time     // of the burst; zero if there is none
	burst time.Duration // how long this burst may get
	cut   bool          // the tick that is set comes before the burst ends
}

func newDebounce() *debounce {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &debounce{C: t.C, timer: t, burst: minBurst}
}

// event notes an event at now.
func (d *debounce) event(now time.Time) {
	if d.began.IsZero() {
		d.began = now
	}
	wait := d.burst - now.Sub(d.began)
	d.cut = wait < quietTime
	d.timer.Reset(max(min(quietTime, wait), 0))
}

// fired notes a tick.
func (d *debounce) fired() {
	d.began = time.Time{}
	if d.cut {
		d.burst = min(2*d.burst, maxBurst)
	} else {
		d.burst = minBurst
	}
}
