package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/crinet-project/crinet/internal/drain"
)

// abortWait bounds the wait for calls whose context was cancelled.
const abortWait = 5 * time.Second

// Serve answers calls on listener until ctx ends. Then it lets calls under way
// finish within the configured grace, and cancels the rest. It ends streams of
// container events at once, since they do not end by themselves. It returns nil if
// ctx has ended and all calls have, and always closes the listener.
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
	ended := drain.Wait(func() {
		p.server.GracefulStop()
		<-served //nolint:errcheck // Serve always fails once it is stopped
	}, p.grace, func() {
		p.log.InfoContext(ctx, "CRI proxy: calls are still under way after the grace, cancelling them", "grace", p.grace)
		p.server.Stop()
	}, abortWait)
	if !ended {
		return fmt.Errorf("CRI proxy: serving on %s: calls did not end within %v of being cancelled", listener.Addr(), abortWait)
	}
	return nil
}
