package engine

import (
	"context"
	"sync"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/journal"
)

// The wait between two attempts to undo doubles from undoFirst to undoMost.
const (
	undoFirst = time.Second
	undoMost  = 2 * time.Minute
)

// queue undoes attachments, each until it works. It lives in memory: the journal
// holds the same records, and [Engine.Recover] fills the queue from there.
type queue struct {
	// attempt undoes one attachment and says whether that is done.
	attempt func(ctx context.Context, key journal.Key, created time.Time) (done bool)
	ctx     context.Context
	stop    context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	pending map[journal.Key]bool
}

func newQueue(attempt func(context.Context, journal.Key, time.Time) bool) *queue {
	ctx, stop := context.WithCancel(context.Background())
	return &queue{attempt: attempt, ctx: ctx, stop: stop, pending: make(map[journal.Key]bool)}
}

// add has an attachment undone: at once if nobody has tried yet, otherwise after
// a wait. It does nothing for one that is in the queue.
func (q *queue) add(r *journal.Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending[r.Key()] || q.ctx.Err() != nil {
		return
	}
	q.pending[r.Key()] = true
	key, created, at := r.Key(), r.Created, time.Duration(0)
	waits := backoff.Backoff{First: undoFirst, Max: undoMost, Jitter: 0.25}
	if r.Tries > 0 {
		at = waits.Next()
	}
	q.wg.Go(func() {
		defer q.remove(key)
		for backoff.Sleep(q.ctx, at) && !q.attempt(q.ctx, key, created) {
			at = waits.Next()
		}
	})
}

func (q *queue) remove(key journal.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.pending, key)
}

// waiting is the number of attachments that are to be undone.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.pending)
}

// close cuts off what is under way; it stays in the journal.
func (q *queue) close() {
	q.mu.Lock()
	q.stop()
	q.mu.Unlock()
	q.wg.Wait()
}

// undo is the queue's attempt: it detaches the attachment, unless another one
// has taken its place since.
func (e *Engine) undo(ctx context.Context, key journal.Key, created time.Time) (done bool) {
	log := e.log.With("sandbox", key.ContainerID)
	unlock, err := e.locks.lock(ctx, key, "DEL")
	if err != nil {
		log.Warn("the removal of a pod's network could not begin; crinetd tries again", "err", err)
		return false
	}
	defer unlock()
	r, err := e.journal.Get(key)
	if err != nil {
		log.Error("the removal of a pod's network cannot read its journal record; crinetd tries again", "err", err)
		return false
	}
	if r == nil || !r.Created.Equal(created) {
		return true
	}
	if err := e.detach(askedBy(ctx, byCrinetd), r); err != nil {
		log.Warn("pod's network not removed yet", "pod", r.Pod, "tries", r.Tries, "err", err)
		return false
	}
	left, err := e.journal.Get(key) // the record may outlive the network
	return err == nil && left == nil
}
