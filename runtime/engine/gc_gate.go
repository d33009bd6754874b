package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// gcDrain is how long new operations of a network wait for a GC that waits
	// for those under way. One that hangs ends the GC's wait, not theirs.
	gcDrain = time.Second
	// gcLimit bounds a GC that operations wait for.
	gcLimit = 10 * time.Second
)

// errBusy says that the operations of a network did not end in time for its GC.
var errBusy = errors.New("pods come and go, and one of them takes long")

// gates keep a network's GC apart from its ADD and DEL (CNI spec, section 3,
// Lifecycle & Ordering). GC comes once in a long interval; operations wait for
// it for gcDrain and gcLimit at most. The zero value is ready.
type gates struct {
	mu sync.Mutex
	m  map[string]*gate // network name -> its gate
}

type gate struct {
	operations int
	idle       chan struct{} // closed when operations is 0; made by a GC that waits for that
	opened     chan struct{} // closed when the GC that waits or works is over; nil without one
}

// enter begins an ADD or DEL and returns what ends it.
func (g *gates) enter(ctx context.Context, network string) (leave func(), err error) {
	for {
		g.mu.Lock()
		at := g.at(network)
		opened := at.opened
		if opened == nil {
			at.operations++
			g.mu.Unlock()
			return func() { g.leave(network) }, nil
		}
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return nil, fmt.Errorf("network %q: waiting for its garbage collection to end: %w", network, context.Cause(ctx))
		}
	}
}

// leave ends an ADD or DEL.
func (g *gates) leave(network string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.m[network]
	at.operations--
	if at.operations == 0 && at.idle != nil {
		close(at.idle)
		at.idle = nil
	}
	g.drop(network, at)
}

// exclude begins a GC when no operation is under way, and returns what ends it.
// The GC's context ends after gcLimit.
func (g *gates) exclude(ctx context.Context, network string) (gcCtx context.Context, end func(), err error) {
	g.mu.Lock()
	at := g.at(network)
	if at.opened != nil {
		g.mu.Unlock()
		return nil, nil, fmt.Errorf("network %q: another garbage collection is under way", network)
	}
	opened, idle := make(chan struct{}), make(chan struct{})
	at.opened, at.idle = opened, idle
	if at.operations == 0 {
		close(idle)
		at.idle = nil
	}
	g.mu.Unlock()
	open := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		close(opened)
		at.opened, at.idle = nil, nil
		g.drop(network, at)
	}
	timer := time.NewTimer(gcDrain)
	defer timer.Stop()
	select {
	case <-idle:
		ctx, cancel := context.WithTimeout(ctx, gcLimit)
		return ctx, func() { cancel(); open() }, nil
	case <-timer.C:
		open()
		return nil, nil, fmt.Errorf("network %q: garbage collection did not begin: %w", network, errBusy)
	case <-ctx.Done():
		open()
		return nil, nil, context.Cause(ctx)
	}
}

// at returns the network's gate. The caller holds the lock.
func (g *gates) at(network string) *gate {
	if g.m == nil {
		g.m = make(map[string]*gate)
	}
	if g.m[network] == nil {
		g.m[network] = new(gate)
	}
	return g.m[network]
}

// drop forgets a gate that nobody uses. The caller holds the lock.
func (g *gates) drop(network string, at *gate) {
	if at.operations == 0 && at.opened == nil && g.m[network] == at {
		delete(g.m, network)
	}
}
