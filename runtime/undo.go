package runtime

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
)

// The wait before an attempt to undo doubles from undoFirst to undoMost, give or
// take a quarter. At most undoAtOnce attempts run at a time.
const (
	undoFirst  = time.Second
	undoMost   = 2 * time.Minute
	undoAtOnce = 8
)

// undoQueue holds what must be undone and could not be yet. It lives in memory:
// the journal has the same records, and recovery fills the queue from there.
type undoQueue struct {
	attempt func(ctx context.Context, key journal.Key, created time.Time)
	stop    context.CancelFunc
	ctx     context.Context
	slots   chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	pending map[journal.Key]bool
}

func newUndoQueue(attempt func(context.Context, journal.Key, time.Time)) *undoQueue {
	ctx, stop := context.WithCancel(context.Background())
	return &undoQueue{
		attempt: attempt, ctx: ctx, stop: stop,
		slots:   make(chan struct{}, undoAtOnce),
		pending: make(map[journal.Key]bool),
	}
}

// add schedules an attempt for a record: at once when none was made yet,
// otherwise after a wait. A record that waits already is not added again.
func (q *undoQueue) add(r *journal.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending[r.Key()] || q.ctx.Err() != nil {
		return
	}
	q.pending[r.Key()] = true
	key, created, wait := r.Key(), r.Created, backoff(r.Tries)
	q.wg.Go(func() { q.wait(key, created, wait) })
}

// wait makes one attempt when its time has come; a failed one adds the next.
func (q *undoQueue) wait(key journal.Key, created time.Time, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-q.ctx.Done():
		return
	}
	select {
	case q.slots <- struct{}{}:
		defer func() { <-q.slots }()
	case <-q.ctx.Done():
		return
	}
	q.mu.Lock()
	delete(q.pending, key)
	q.mu.Unlock()
	q.attempt(q.ctx, key, created)
}

// waiting is the number of attachments that wait for an attempt.
func (q *undoQueue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.pending)
}

// close ends the queue: attempts under way are cut off, and stay in the journal.
func (q *undoQueue) close() {
	q.mu.Lock()
	q.stop()
	q.mu.Unlock()
	q.wg.Wait()
}

// backoff is the wait before the next attempt after so many failed ones.
func backoff(tries int) time.Duration {
	if tries <= 0 {
		return 0
	}
	wait := undoMost
	if tries < 8 {
		wait = min(undoFirst<<(tries-1), undoMost)
	}
	return wait*3/4 + rand.N(wait/2)
}

// retry is the queue's attempt: it detaches the attachment unless another one
// has taken its place since.
func (m *Manager) retry(ctx context.Context, key journal.Key, created time.Time) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	log := m.Log.With("sandbox", key.ContainerID)
	unlock, err := m.locks.lock(ctx, key)
	if err != nil {
		log.Warn("an undo could not begin", "err", err)
		return
	}
	defer unlock()
	r, err := m.Journal.Get(key)
	if err != nil {
		log.Error("an undo cannot read its journal record", "err", err)
		return
	}
	if r == nil || !r.Created.Equal(created) {
		return
	}
	if err := m.detach(ctx, r); err != nil {
		log.Warn("pod's network not removed yet", "tries", r.Tries, "err", err)
	}
}
