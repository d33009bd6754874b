package drain

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWait(t *testing.T) {
	const grace, last = time.Minute, time.Second
	for _, c := range []struct {
		name  string
		ends  time.Duration // by itself; 0 for never
		obeys bool          // ends when it is cut off
		ok    bool
		cut   bool
		took  time.Duration
	}{
		{"ends in the grace", time.Second, true, true, false, time.Second},
		{"is cut off", 0, true, true, true, grace},
		{"ends late", grace + last/2, false, true, true, grace + last/2},
		{"does not end", 0, false, false, true, grace + last},
	} {
		synctest.Test(t, func(t *testing.T) {
			end, cut := make(chan struct{}), false
			if c.ends > 0 {
				time.AfterFunc(c.ends, func() { close(end) })
			}
			began := time.Now()
			ok := Wait(func() { <-end }, grace, func() {
				cut = true
				if c.obeys {
					close(end)
				}
			}, last)
			took := time.Since(began)
			synctest.Wait()
			if ok != c.ok || cut != c.cut || took != c.took {
				t.Errorf("%s: ended %v, cut off %v, after %v; want %v, %v, %v", c.name, ok, cut, took, c.ok, c.cut, c.took)
			}
			if !c.ok {
				close(end)
			}
		})
	}
}
