package cni

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// patience is how long a chain holds its place in a lane. One that takes longer
// hangs more likely than it works, and must not hold up the others: its place is
// given back while it goes on, until Config.Timeout at most.
const patience = 10 * time.Second

// lane bounds how many chains run one verb at once. Each verb has a lane of its
// own, so that an ADD that hangs holds up no DEL. Chains that wait are served in
// the order in which they came.
type lane struct {
	verb  string
	most  int64
	slots *semaphore.Weighted // nil: no bound
}

func newLane(verb string, most int) *lane {
	if most <= 0 {
		return &lane{verb: verb}
	}
	return &lane{verb: verb, most: int64(most), slots: semaphore.NewWeighted(int64(most))}
}

// enter waits for a place. The caller calls leave when its chain has ended.
func (l *lane) enter(ctx context.Context) (leave func(), err error) {
	if l.slots == nil {
		return func() {}, nil
	}
	if err := l.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("%d plugin chains run %s already (--cni-max-chains), and none ended in time: %w", l.most, l.verb, context.Cause(ctx))
	}
	giveBack := sync.OnceFunc(func() { l.slots.Release(1) })
	timer := time.AfterFunc(patience, giveBack)
	return func() {
		timer.Stop()
		giveBack()
	}, nil
}
