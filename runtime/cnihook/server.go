package cnihook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Defaults of Config.
const (
	defaultConnections    = 1024
	defaultRequestTimeout = 5 * time.Second
	defaultGrace          = 5 * time.Second

	// abortWait bounds the wait for calls whose context was cancelled.
	abortWait = 5 * time.Second
	// replyTimeout bounds the time a plugin may take to read its answer.
	replyTimeout = 10 * time.Second
	// acceptPause follows a failed accept, such as for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// Why the context of a call ended (context.Cause).
var (
	// ErrCallerGone means that the plugin's process ended: the runtime did
	// not wait any longer.
	ErrCallerGone = errors.New("the runtime gave up waiting and ended its call")
	// ErrStopping means that crinetd stops and the grace is over.
	ErrStopping = errors.New("crinetd is stopping")
)

// Attacher does what the CNI spec says of one attachment. A *types.Error keeps
// its code on the way to the runtime, any other error gets 999.
type Attacher interface {
	// Add returns the CNI result, in any version.
	Add(ctx context.Context, call *Call) (result []byte, err error)
	Del(ctx context.Context, call *Call) error
	Check(ctx context.Context, call *Call) error
}

// Network does what the CNI spec says of a whole network.
type Network interface {
	// Status is nil when the network can take ADD. It must not block.
	Status(ctx context.Context) error
	// GC removes all but the attachments that call.Config lists.
	GC(ctx context.Context, call *Call) error
}

// Handler answers the calls, from many goroutines at once.
type Handler interface {
	Attacher
	Network
}

// Config of a Server. Handler is required; zero values have a default.
type Config struct {
	Handler Handler
	// Log receives the outcome of every call: at debug level when it went
	// well, else at warn. Nil discards.
	Log *slog.Logger
	// Connections is how many are served at once, 1024 by default.
	Connections int
	// RequestTimeout is the time that a client has to send its request, 5 s
	// by default.
	RequestTimeout time.Duration
	// Grace is the time that calls under way have to finish when Serve ends,
	// 5 s by default.
	Grace time.Duration
}

// Server takes the runtime's calls to the CNI plugin.
type Server struct {
	handler        Handler
	log            *slog.Logger
	slots          chan struct{} // one element a connection
	requestTimeout time.Duration
	grace          time.Duration
}

// New makes a Server.
func New(c Config) (*Server, error) {
	if c.Handler == nil {
		return nil, errors.New("CNI hook: no handler")
	}
	if c.Connections < 0 || c.RequestTimeout < 0 || c.Grace < 0 {
		return nil, fmt.Errorf("CNI hook: negative limit: %d connections, request timeout %v, grace %v", c.Connections, c.RequestTimeout, c.Grace)
	}
	if c.Connections == 0 {
		c.Connections = defaultConnections
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = defaultRequestTimeout
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		handler:        c.Handler,
		log:            c.Log,
		slots:          make(chan struct{}, c.Connections),
		requestTimeout: c.RequestTimeout,
		grace:          c.Grace,
	}, nil
}

// Serve answers calls on listener until ctx ends. New calls are then refused
// as for later, those under way get the grace, and the rest are cancelled with
// ErrStopping. It returns nil when ctx ended and all calls did, and always
// closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	// Calls outlive ctx by the grace.
	calls, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(ErrStopping)
	closeListener := sync.OnceValue(listener.Close)
	defer context.AfterFunc(ctx, func() { _ = closeListener() })() // its error is read below
	var running sync.WaitGroup
	acceptErr := s.accept(ctx, listener, func(conn net.Conn) {
		running.Go(func() { s.serve(ctx, calls, conn) })
	})
	if err := closeListener(); err != nil && !errors.Is(err, net.ErrClosed) {
		acceptErr = errors.Join(acceptErr, err)
	}
	if !s.drain(&running, cancel) {
		acceptErr = errors.Join(acceptErr, fmt.Errorf("calls did not end within %v of being cancelled", abortWait))
	}
	if acceptErr != nil {
		return fmt.Errorf("CNI hook: serving on %s: %w", listener.Addr(), acceptErr)
	}
	return nil
}

// accept starts serving each connection as long as there are slots. It returns
// nil when ctx ends.
func (s *Server) accept(ctx context.Context, listener net.Listener, start func(net.Conn)) error {
	for {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		conn, err := listener.Accept()
		if err == nil {
			start(conn)
			continue
		}
		<-s.slots
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// Descriptors may run out and come back; pods must not suffer longer.
		s.log.WarnContext(ctx, "CNI hook: accepting a connection failed, trying again", "error", err)
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
		}
	}
}

// drain waits for the calls under way: for the grace, then cancelled.
func (s *Server) drain(running *sync.WaitGroup, cancel context.CancelCauseFunc) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		running.Wait()
	}()
	select {
	case <-done:
		return true
	case <-time.After(s.grace):
	}
	cancel(ErrStopping)
	select {
	case <-done:
		return true
	case <-time.After(abortWait):
		return false
	}
}
