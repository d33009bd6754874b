package cni

import (
	"context"
	"fmt"

	"golang.org/x/sync/semaphore"
)

// limit bounds how many chains run at once. Those that wait are served in the
// order in which they came; none is passed over. A chain that hangs holds its
// place for Config.Timeout at most.
type limit struct {
	most  int64
	slots *semaphore.Weighted // nil: no limit
}

func newLimit(most int) limit {
	if most <= 0 {
		return limit{}
	}
	return limit{most: int64(most), slots: semaphore.NewWeighted(int64(most))}
}

// enter waits for a place and returns what gives it back.
func (l limit) enter(ctx context.Context) (leave func(), err error) {
	if l.slots == nil {
		return func() {}, nil
	}
	if err := l.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("%d plugin chains run already (--cni-max-chains), and none ended in time: %w", l.most, err)
	}
	return func() { l.slots.Release(1) }, nil
}
