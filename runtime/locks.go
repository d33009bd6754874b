package runtime

import (
	"context"
	"fmt"
	"sync"

	"github.com/crinet-project/crinet/runtime/journal"
)

// locks are mutexes by attachment, whose waiters give up when their context
// ends. A mutex exists as long as somebody holds it or waits for it. The zero
// value is ready.
type locks struct {
	mu sync.Mutex
	m  map[journal.Key]*keyLock
}

type keyLock struct {
	held  chan struct{} // holds a token while locked
	users int
}

// lock waits for the attachment's mutex and returns what unlocks it.
func (l *locks) lock(ctx context.Context, key journal.Key) (unlock func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = make(map[journal.Key]*keyLock)
	}
	k := l.m[key]
	if k == nil {
		k = &keyLock{held: make(chan struct{}, 1)}
		l.m[key] = k
	}
	k.users++
	l.mu.Unlock()

	select {
	case k.held <- struct{}{}:
		return func() {
			<-k.held
			l.leave(key, k)
		}, nil
	case <-ctx.Done():
		l.leave(key, k)
		return nil, fmt.Errorf("sandbox %s: waiting for another operation on its network: %w",
			key.ContainerID, context.Cause(ctx))
	}
}

func (l *locks) leave(key journal.Key, k *keyLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.m, key)
	}
}
