// Package backoff counts the waits between attempts that keep failing: each is
// twice as long as the one before, up to a limit.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is one series of waits. Its fields are set before its first use. It is
// not safe for concurrent use.
type Backoff struct {
	// First is the first wait, Max the longest one. Both must be positive.
	First, Max time.Duration
	// Jitter is the part of each wait, from 0 to 1, that is taken from it at
	// random, so that attempts that failed together are not repeated together.
	Jitter float64

	last time.Duration // before jitter; 0 at the start of a series
}

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	b.last = min(max(2*b.last, b.First), b.Max)
	return b.last - time.Duration(b.Jitter*rand.Float64()*float64(b.last))
}

// Reset starts a new series: Next returns First again.
func (b *Backoff) Reset() { b.last = 0 }

// Sleep waits for d, or until ctx ends. It reports whether ctx is still alive.
func Sleep(ctx context.Context, d time.Duration) bool {
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
