package config

import (
	"testing"
	"testing/synctest"
	"time"
)

// A single change is looked at after minSettle, however many came before it; a
// storm at growing intervals, so that its looks are few and none is far.
func TestDebounce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := newDebounce()
		defer d.timer.Stop()
		wait := func() time.Duration {
			begun := time.Now()
			<-d.timer.C
			d.fired(time.Now())
			return time.Since(begun)
		}
		for range 10 { // changes one right after the other was seen
			d.event(time.Now())
			d.event(time.Now())
			if took := wait(); took != minSettle {
				t.Fatalf("a change was seen after %v, want %v", took, minSettle)
			}
		}
		looks := 0
		for begun := time.Now(); time.Since(begun) < 5*time.Second; time.Sleep(time.Millisecond) {
			d.event(time.Now())
			select {
			case <-d.timer.C:
				d.fired(time.Now())
				looks++
			default:
			}
		}
		if looks < 5000/int(maxSettle.Milliseconds()) || looks > 12 {
			t.Errorf("a storm of 5 s was looked at %d times", looks)
		}
		wait()
		d.event(time.Now())
		if took := wait(); took != minSettle {
			t.Errorf("a change after the storm was seen after %v, want %v", took, minSettle)
		}
	})
}
