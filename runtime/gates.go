package runtime

import (
	"context"
	"fmt"
	"sync"
)

// gates keep garbage collection and ADD of one network apart: GC must not run
// between the beginning of an ADD and its end. An ADD never waits for a GC
// longer than it takes to kill its plugin, and a GC never waits at all. The zero
// value is ready.
type gates struct {
	mu sync.Mutex
	m  map[string]*gate // by network name
}

type gate struct {
	adds int
	// cancel ends the GC that is under way, done is closed when it has ended.
	cancel context.CancelFunc
	done   chan struct{}
}

// add begins an ADD, ending a GC that is under way, and returns what ends it.
func (g *gates) add(ctx context.Context, network string) (end func(), err error) {
	for {
		g.mu.Lock()
		at := g.at(network)
		if at.cancel == nil {
			at.adds++
			g.mu.Unlock()
			return func() { g.leave(network, func(at *gate) { at.adds-- }) }, nil
		}
		at.cancel()
		done := at.done
		g.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, fmt.Errorf("network %q: waiting for its garbage collection to end: %w", network, context.Cause(ctx))
		}
	}
}

// collect begins a GC, whose context ends when an ADD comes, and returns what
// ends it. While an ADD or another GC is under way, it does not begin.
func (g *gates) collect(ctx context.Context, network string) (gcCtx context.Context, end func(), begun bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.at(network)
	if at.adds > 0 || at.cancel != nil {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	at.cancel, at.done = cancel, done
	return ctx, func() {
		cancel()
		g.leave(network, func(at *gate) { at.cancel = nil })
		close(done)
	}, true
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

func (g *gates) leave(network string, change func(*gate)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.m[network]
	if change(at); at.adds == 0 && at.cancel == nil {
		delete(g.m, network)
	}
}
