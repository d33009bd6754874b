package cni

import (
	"context"
	"fmt"
	"time"
)

// maxHeadStart is the most by which a plugin is ended before its caller's
// deadline.
const maxHeadStart = 2 * time.Second

// timeLimit is why a plugin is ended. It is a context.DeadlineExceeded that says
// whose deadline it was.
type timeLimit string

func (l timeLimit) Error() string { return string(l) }

// Is reports a time limit as context.DeadlineExceeded.
func (timeLimit) Is(target error) bool { return target == context.DeadlineExceeded }

// limited gives a run of plugins its time: most, the value of --cni-timeout.
func limited(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, most, timeLimit(fmt.Sprintf("--cni-timeout is %v", most)))
}

// beforeDeadline returns a context that ends shortly before ctx's deadline: a
// twentieth of the time that is left, maxHeadStart at most. The caller then still
// waits, and learns which plugin was ended, after how long, and what it printed
// on stderr. Without a deadline it returns ctx.
func beforeDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	left := time.Until(deadline)
	limit := timeLimit(fmt.Sprintf("its caller waits for %v only", left.Round(time.Millisecond)))
	return context.WithTimeoutCause(ctx, left-min(left/20, maxHeadStart), limit)
}
