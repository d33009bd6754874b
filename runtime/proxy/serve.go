package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/internal/drain"
)

const (
	// abortWait bounds the wait for calls that were cut off.
	abortWait = 5 * time.Second
	// farewell is how long they may take to tell their callers.
	farewell = time.Second
	// handover bounds the wait for connections that were just accepted.
	handover = 100 * time.Millisecond
	// quietWait is how long Serve waits at its end for a moment without drained
	// calls, so that nobody waits for them in the listen queue.
	quietWait = 3 * time.Second
	// lastWait is how much of the grace is kept for the calls under way when nothing
	// more is accepted, half of it at most. Callers wait in the listen queue
	// meanwhile, and the kubelet gives up connecting after five seconds.
	lastWait = 4 * time.Second
	// lookEvery is the time between two looks for that moment.
	lookEvery = 2 * time.Millisecond
)

// Serve answers calls on listener until ctx ends, and always closes the listener.
// It returns nil if ctx has ended and all calls have.
//
// The end loses no call where the listening socket outlives this process:
//   - As long as drained calls go on that began before the end of ctx, all others
//     are served as before, so that a slow pod does not silence the node. Then a
//     moment without any drained call is waited for, for three seconds at most.
//   - Then nothing more is accepted, and GOAWAY tells the callers to connect anew:
//     what they send from then on waits in the listen queue. Endless calls are
//     ended at once, passing calls after Config.PassGrace, drained calls after
//     Config.Grace, which counts from the end of ctx.
func (p *Proxy) Serve(ctx context.Context, listener net.Listener) error {
	gate := newGate(listener)
	p.gate.Store(gate)
	served := make(chan error, 1)
	go func() { served <- p.server.Serve(gate) }()
	select {
	case err := <-served:
		p.server.Stop()
		if err == nil {
			err = grpc.ErrServerStopped
		}
		return fmt.Errorf("CRI proxy: serving on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	end := time.Now().Add(p.grace)
	p.outlast(max(p.grace-lastWait, p.grace/2))
	closeErr := gate.Close()
	<-served //nolint:errcheck // it fails because its listener is closed
	gate.settle(handover)
	if !p.drain(ctx, time.Until(end)) {
		return fmt.Errorf("CRI proxy: serving on %s: calls did not end within %v of being cut off", listener.Addr(), abortWait)
	}
	return closeErr
}

// outlast waits until no drained call is under way, or for a time: until those have
// ended that are under way now, and quietWait.
func (p *Proxy) outlast(patience time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, call := range p.calls.of(drained) {
		select {
		case <-call.done:
		case <-ctx.Done():
			return
		}
	}
	quiet, cancel := context.WithTimeout(ctx, quietWait)
	defer cancel()
	for len(p.calls.of(drained)) > 0 && backoff.Sleep(quiet, lookEvery) {
	}
}

// drain ends the calls under way, each class in its time, and reports whether all
// have ended.
func (p *Proxy) drain(ctx context.Context, grace time.Duration) bool {
	p.calls.cutOff(endless)
	passed := time.AfterFunc(min(p.passGrace, grace), func() { p.calls.cutOff(passing) })
	defer passed.Stop()
	ended := make(chan struct{})
	return drain.Wait(func() {
		p.server.GracefulStop()
		close(ended)
	}, grace, func() {
		p.log.InfoContext(ctx, "CRI proxy: calls are still under way after the grace, cutting them off", "grace", p.grace)
		p.calls.cutOff(passing)
		p.calls.cutOff(drained)
		select {
		case <-ended:
		case <-time.After(farewell):
			p.server.Stop()
		}
	}, abortWait)
}
