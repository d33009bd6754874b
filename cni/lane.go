package cni

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

// patience is how long a chain holds its place in a lane. One that takes longer
// hangs more likely than it works, and must not hold up the others: its place is
// given back while it goes on, until Config.Timeout at most.
const patience = 10 * time.Second

const (
	// unbounded is the limit of a lane without one.
	unbounded = 1 << 20
	// firstPause and lastPause bound how long a lane rests after a plugin asked to try
	// again later: half a second is what a pod may lose to it.
	firstPause = 50 * time.Millisecond
	lastPause  = 500 * time.Millisecond
	// A chain counts as slow from slowLeast on, when it takes slowFactor times as long
	// as chains do that run undisturbed.
	slowLeast  = 500 * time.Millisecond
	slowFactor = 4
)

// lane bounds how many chains run one verb at once. Each verb has a lane of its
// own, so that an ADD that hangs holds up no DEL. Chains that wait are served in
// the order of their turns.
//
// The bound follows what the plugins bear (additive increase, multiplicative
// decrease, as in TCP): it halves when one asks to try again later (CNI spec, code
// 11), shrinks when chains become slow, and grows with each that works, up to most.
type lane struct {
	verb string
	most int

	mu      sync.Mutex // guards what follows
	limit   float64
	running int
	waiting turns
	turns   uint64    // given out so far
	rests   time.Time // nobody enters before
	pauses  backoff.Backoff
	usual   time.Duration // how long a chain takes when all is well
	left    time.Time     // when the last chain ended
	ended   chan struct{} // closed when the next chain ends
}

// turn is a chain's place in a lane's order. A chain that tries again keeps it.
type turn struct {
	first  bool // comes before all that are not
	number uint64
	ready  chan struct{} // closed when the chain may enter; nil while it does not wait
}

func newLane(verb string, most int) *lane {
	if most <= 0 {
		most = unbounded
	}
	return &lane{
		verb: verb, most: most, limit: float64(most), ended: make(chan struct{}),
		pauses: backoff.Backoff{First: firstPause, Max: lastPause, Jitter: 0.25},
	}
}

// turn gives out the next place in the order.
func (l *lane) turn(first bool) *turn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turns++
	return &turn{first: first, number: l.turns}
}

// enter waits until it is the turn of a chain. The caller calls leave when the chain has
// ended.
func (l *lane) enter(ctx context.Context, t *turn) (leave func(), err error) {
	ready := l.wait(t)
	select {
	case <-ready:
	case <-ctx.Done():
		if !l.giveUp(t) {
			l.leave() // its turn came at the same moment
		}
		return nil, fmt.Errorf("%s, and the turn of this one did not come in time: %w", l.busy(), context.Cause(ctx))
	}
	giveBack := sync.OnceFunc(l.leave)
	timer := time.AfterFunc(patience, giveBack)
	return func() {
		timer.Stop()
		giveBack()
	}, nil
}

func (l *lane) busy() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.most < unbounded && int(l.limit) == l.most {
		return fmt.Sprintf("%d plugin chains run %s already (--cni-max-chains)", l.running, l.verb)
	}
	return fmt.Sprintf("%d plugin chains run %s, and crinetd lets %d run while the plugins are busy", l.running, l.verb, int(l.limit))
}

// wait puts a chain among those that wait, and lets those in whose turn it is.
func (l *lane) wait(t *turn) (ready <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t.ready = make(chan struct{})
	heap.Push(&l.waiting, t)
	ready = t.ready
	l.admit()
	return ready
}

// giveUp takes a chain from those that wait; false says that it has entered.
func (l *lane) giveUp(t *turn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.waiting {
		if other == t {
			heap.Remove(&l.waiting, i)
			return true
		}
	}
	return false
}

func (l *lane) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	l.left = time.Now()
	close(l.ended)
	l.ended = make(chan struct{})
	l.admit()
}

// admit lets in those whose turn it is. The caller holds the lock.
func (l *lane) admit() {
	if len(l.waiting) > 0 && time.Now().Before(l.rests) {
		return // the timer of the pause calls again
	}
	for len(l.waiting) > 0 && l.running < max(int(l.limit), 1) {
		next, _ := heap.Pop(&l.waiting).(*turn)
		l.running++
		close(next.ready)
	}
}

// worked says that a chain has ended well after so long: one more may run, unless it was
// slow.
func (l *lane) worked(took time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pauses.Reset()
	if l.usual == 0 || took < l.usual {
		l.usual = took
	}
	if took > slowLeast && took > slowFactor*l.usual {
		l.limit = max(min(l.limit, float64(l.running))*0.9, 1)
	} else {
		l.limit = min(l.limit+1/l.limit, float64(l.most))
	}
	l.usual += (took - l.usual) / 512 // what was quick once need not be quick for ever
	l.admit()
}

// refused says that a plugin asked to try again later: half as many may run, after a
// pause. Refusals of chains that ran beside it count once.
func (l *lane) refused() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Before(l.rests) {
		return
	}
	l.limit = max(min(l.limit, float64(l.running+1))/2, 1)
	pause := l.pauses.Next()
	l.rests = now.Add(pause)
	time.AfterFunc(pause, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.admit()
	})
}

// next returns a channel that is closed when the next chain ends, and how many run.
func (l *lane) next() (ended <-chan struct{}, running int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended, l.running
}

// since says whether a chain has ended after a moment.
func (l *lane) since(moment time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left.After(moment)
}

// Load is how busy a lane is.
type Load struct {
	Limit   int // how many may run at once; 0: as many as come
	Running int
	Waiting int
}

func (l *lane) load() Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	load := Load{Limit: max(int(l.limit), 1), Running: l.running, Waiting: len(l.waiting)}
	if load.Limit == unbounded {
		load.Limit = 0
	}
	return load
}

// turns is a heap of chains that wait, those that come first on top.
type turns []*turn

func (t turns) Len() int { return len(t) }

func (t turns) Less(i, j int) bool {
	if t[i].first != t[j].first {
		return t[i].first
	}
	return cmp.Less(t[i].number, t[j].number)
}

func (t turns) Swap(i, j int) { t[i], t[j] = t[j], t[i] }

func (t *turns) Push(x any) {
	one, _ := x.(*turn)
	*t = append(*t, one)
}

func (t *turns) Pop() any {
	last := (*t)[len(*t)-1]
	*t = (*t)[:len(*t)-1]
	return last
}
