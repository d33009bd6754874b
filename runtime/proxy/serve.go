package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
)

// abortWait bounds the wait for calls whose context was cancelled.
const abortWait = 5 * time.Second

// Serve answers calls on listener until ctx ends, then lets calls under way
// finish within the configured grace and cancels the rest. Streams of container
// events, which have no end of their own, are ended at once. It returns
// nil when ctx ended and all calls did, and always closes the listener.
func (p *Proxy) Serve(ctx context.Context, listener net.Listener) error {
	served := make(chan error, 1)
	go func() { served <- p.server.Serve(wideListener{listener}) }()
	select {
	case err := <-served:
		p.stop()
		p.server.Stop()
		if err == nil {
			err = grpc.ErrServerStopped
		}
		return fmt.Errorf("CRI proxy: serving on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	p.stop()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		p.server.GracefulStop()
		<-served //nolint:errcheck // Serve always fails once it is stopped
	}()
	if waitFor(drained, p.grace) {
		return nil
	}
	p.log.InfoContext(ctx, "CRI proxy: calls are still under way after the grace, cancelling them", "grace", p.grace)
	aborted := make(chan struct{})
	go func() {
		defer close(aborted)
		p.server.Stop()
	}()
	if waitFor(aborted, abortWait) && waitFor(drained, abortWait) {
		return nil
	}
	return fmt.Errorf("CRI proxy: serving on %s: calls did not end within %v of being cancelled", listener.Addr(), abortWait)
}

// waitFor tells whether done was closed within d.
func waitFor(done <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
