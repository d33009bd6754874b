package cni

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// At most so many are in at once; the others come in the order in which they
// asked, and one that gives up is skipped.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimit(2)
		first, err := l.enter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.enter(t.Context()); err != nil { // hangs, and never leaves
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.enter(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "--cni-max-chains") {
			t.Errorf("a third came in: %v", err)
		}
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				leave, err := l.enter(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				order <- i
				leave()
			}()
			synctest.Wait() // until it waits
		}
		if len(order) != 0 {
			t.Error("one more came in than may")
		}
		first()
		for want := range 3 {
			if got := <-order; got != want {
				t.Errorf("%d came in when it was %d's turn", got, want)
			}
		}
	})
}

func TestNoLimit(t *testing.T) {
	l := newLimit(0)
	for range 100 {
		if _, err := l.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
