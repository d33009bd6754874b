package backoff

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestNextDoublesToMax(t *testing.T) {
	t.Parallel()
	b := Backoff{First: time.Second, Max: 5 * time.Second}
	for range 2 {
		var got []time.Duration
		for range 5 {
			got = append(got, b.Next())
		}
		want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		b.Reset()
	}
}

func TestJitterShortens(t *testing.T) {
	t.Parallel()
	b := Backoff{First: time.Second, Max: time.Second, Jitter: 0.25}
	shorter := 0
	for range 1000 {
		d := b.Next()
		if d < 750*time.Millisecond || d > time.Second {
			t.Fatalf("waits %v, want between 750ms and 1s", d)
		}
		if d < time.Second {
			shorter++
		}
	}
	if shorter == 0 {
		t.Error("no wait of 1000 was shortened")
	}
}

func TestSleep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		if !Sleep(t.Context(), time.Minute) || time.Since(begun) != time.Minute {
			t.Errorf("slept for %v, want 1m", time.Since(begun))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if begun = time.Now(); Sleep(ctx, time.Minute) || time.Since(begun) != time.Second {
			t.Errorf("slept for %v after its context ended", time.Since(begun))
		}
		if Sleep(ctx, 0) || !Sleep(t.Context(), -1) {
			t.Error("a sleep of no length does not report its context")
		}
	})
}
