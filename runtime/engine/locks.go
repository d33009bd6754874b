package engine

import (
	"context"
	"sync"
	"time"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/journal"
)

// No runtime calls a plugin for a sandbox while it waits for that sandbox's ADD
// (CNI spec, section 3, Lifecycle & Ordering): the second call comes from a
// plugin of the first one's chain, and would wait for its own parent. Package
// cnihook knows such a call by its environment, unless a daemon made it.
const (
	// nestedAdd is how long a call waits for an ADD of the same attachment whose
	// caller still waits for its answer.
	nestedAdd = time.Second
	// nestedDel is the same for two DELs: a runtime may call two at once, and the
	// second one succeeds when the first is done.
	nestedDel = 10 * time.Second
)

// locks are mutexes by attachment, whose waiters give up when their context
// ends. A mutex exists as long as somebody holds it or waits for it. The zero
// value is ready.
type locks struct {
	mu sync.Mutex
	m  map[journal.Key]*keyLock // attachment -> its mutex
}

type keyLock struct {
	held  chan struct{}   // holds a token while locked
	users int             // guarded by locks.mu, as are the next two
	verb  string          // what the holder does; empty without one
	gone  <-chan struct{} // closed when the holder's caller does not wait any more
}

// lock waits for the attachment's mutex and returns what unlocks it. The error
// has code 11, try again later. If the call would wait for its own parent it is a
// nestedError, of code 7, invalid network config: no other try helps.
func (l *locks) lock(ctx context.Context, key journal.Key, verb string) (unlock func(), err error) {
	k := l.join(key)
	began, patience := time.Now(), time.NewTicker(nestedAdd)
	defer patience.Stop()
	for {
		select {
		case k.held <- struct{}{}:
			l.hold(k, verb, ctx.Done())
			return func() {
				l.hold(k, "", nil)
				<-k.held
				l.leave(key, k)
			}, nil
		case <-ctx.Done():
			l.leave(key, k)
			return nil, wire.Errorf(wire.CodeTryAgainLater, "sandbox %s: waiting for another operation on its network: %v",
				key.ContainerID, context.Cause(ctx))
		case <-patience.C:
			if holder := l.holder(k); holder == "ADD" || holder == "DEL" && verb == "DEL" && time.Since(began) >= nestedDel {
				l.leave(key, k)
				return nil, nested(verb, holder, key.ContainerID)
			}
		}
	}
}

// nestedError is the error of a call that comes from inside a chain that crinetd
// runs for the same attachment.
type nestedError struct{ said *wire.Error }

func (e nestedError) Error() string { return e.said.Error() }
func (e nestedError) Unwrap() error { return e.said }

func nested(verb, holder, containerID string) error {
	return nestedError{said: wire.Errorf(wire.CodeInvalidConfig, "%s for sandbox %s came while the %s of the same sandbox was under way: "+
		"a plugin of the selected network calls crinet again. Name a network for --network-plugin whose plugins "+
		"do not delegate to crinet, and keep 00-crinet.conflist out of the directory in which they look for networks",
		verb, containerID, holder)}
}

// join returns the attachment's mutex and counts the caller among its users.
func (l *locks) join(key journal.Key) *keyLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = make(map[journal.Key]*keyLock)
	}
	k := l.m[key]
	if k == nil {
		k = &keyLock{held: make(chan struct{}, 1)}
		l.m[key] = k
	}
	k.users++
	return k
}

func (l *locks) leave(key journal.Key, k *keyLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.m, key)
	}
}

// hold notes who holds the mutex.
func (l *locks) hold(k *keyLock, verb string, gone <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k.verb, k.gone = verb, gone
}

// holder says what the holder does whose caller still waits; empty if it does not.
func (l *locks) holder(k *keyLock) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-k.gone:
		return ""
	default:
		return k.verb
	}
}
