package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/crinet-project/crinet/internal/drain"
)

const (
	// abortWait bounds the wait for calls that were cut off.
	abortWait = 5 * time.Second
	// farewell is how long they may take to tell their callers.
	farewell = time.Second
	// handover bounds the wait for connections that were just accepted.
	handover = 100 * time.Millisecond
	// queueWait bounds the time that new calls wait in the listen queue for calls
	// that are being drained. The kubelet gives up connecting after five seconds.
	queueWait = 4 * time.Second
)

// Serve answers calls on listener until ctx ends, and always closes the listener.
// It returns nil if ctx has ended and all calls have.
//
// The end loses no call where the listening socket outlives this process:
//   - As long as drained calls go on that began before the end of ctx, all others
//     are served as before, so that a slow pod does not silence the node.
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
	p.outlast(p.calls.of(drained), max(p.grace-queueWait, p.grace/2))
	closeErr := gate.Close()
	<-served //nolint:errcheck // it fails because its listener is closed
	gate.settle(handover)
	if !p.drain(ctx, time.Until(end)) {
		return fmt.Errorf("CRI proxy: serving on %s: calls did not end within %v of being cut off", listener.Addr(), abortWait)
	}
	return closeErr
}

// outlast waits until these calls have ended, or for a time.
func (p *Proxy) outlast(calls []*underWay, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for _, call := range calls {
		select {
		case <-call.done:
		case <-timer.C:
			return
		}
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
