package cnihook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/drain"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
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
	// lastRequests is how long clients that were accepted may take to send their
	// request when Serve ends.
	lastRequests = time.Second
	// acceptPause is the wait after a failed accept, such as without descriptors.
	acceptPause = 100 * time.Millisecond
)

// Why the context of a call ended (context.Cause).
var (
	// ErrCallerGone means that the plugin's process has ended: the runtime has
	// given up waiting.
	ErrCallerGone = errors.New("the runtime gave up waiting and ended its call")
	// ErrStopping means that crinetd stops and the grace is over.
	ErrStopping = errors.New("crinetd is stopping")
)

// Attacher has the CNI operations on one attachment. The runtime gets a
// *wire.Error with its code, any other error with code 999.
type Attacher interface {
	// Attach is ADD and returns the CNI result, in any version.
	Attach(ctx context.Context, call *engine.Call) (result json.RawMessage, err error)
	// Detach is DEL.
	Detach(ctx context.Context, call *engine.Call) error
	// Check is CHECK.
	Check(ctx context.Context, key journal.Key) error
}

// Network has the CNI operations on a whole network.
type Network interface {
	// Status returns why the network cannot take ADD, nil if it can. It answers
	// from memory.
	Status() error
	// Collect is GC: it removes all but the valid attachments.
	Collect(ctx context.Context, valid []types.GCAttachment) error
}

// Handler answers the calls, from many goroutines at once.
type Handler interface {
	Attacher
	Network
}

// Config of a Server. Handler is required; zero values have a default.
type Config struct {
	Handler Handler
	// Log gets the outcome of every call: at debug level if it succeeded, else
	// at warn level. A nil Log discards.
	Log *slog.Logger
	// Connections is how many connections are served at once, 1024 by default.
	Connections int
	// RequestTimeout is how long a client may take to send its request, 5 s by
	// default.
	RequestTimeout time.Duration
	// Grace returns how long calls under way may take to finish when Serve ends, 5 s
	// by default.
	Grace func() time.Duration
	// Mark is the environment variable, NAME=value, that crinetd gives to the
	// plugins that it runs. A call with that value comes from inside one of them.
	// If Mark is empty, no call does.
	Mark string
	// Trace, if set, puts the trace context that a call brought into the call's
	// context. It must bear any text.
	Trace func(ctx context.Context, traceparent, tracestate string) context.Context
	// Send, if set, writes each answer by calling write.
	Send func(command string, write func() error) error
}

// Server takes the runtime's calls to the CNI plugin.
type Server struct {
	handler        Handler
	log            *slog.Logger
	slots          chan struct{} // one element a connection
	requestTimeout time.Duration
	grace          func() time.Duration
	mark           string // the value of Config.Mark
	trace          func(ctx context.Context, traceparent, tracestate string) context.Context
	send           func(command string, write func() error) error
}

// New makes a Server.
func New(c Config) (*Server, error) {
	if c.Handler == nil {
		return nil, errors.New("CNI hook: no handler")
	}
	if c.Connections < 0 || c.RequestTimeout < 0 {
		return nil, fmt.Errorf("CNI hook: negative limit: %d connections, request timeout %v", c.Connections, c.RequestTimeout)
	}
	if c.Connections == 0 {
		c.Connections = defaultConnections
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = defaultRequestTimeout
	}
	if c.Grace == nil {
		c.Grace = func() time.Duration { return defaultGrace }
	}
	if c.Send == nil {
		c.Send = func(_ string, write func() error) error { return write() }
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
		mark:           strings.TrimPrefix(c.Mark, wire.InsideVariable+"="),
		trace:          c.Trace,
		send:           c.Send,
	}, nil
}

// Serve answers calls on listener until ctx ends. Then it accepts none any more,
// lets those that were accepted finish within the grace, and cancels the rest with
// ErrStopping. It returns nil if ctx has ended and all calls have, and always closes
// the listener: where systemd holds the socket too, new calls wait in its queue.
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
	if !drain.Wait(running.Wait, s.grace(), func() { cancel(ErrStopping) }, abortWait) {
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
		// Descriptors may run out and come back: try again soon.
		s.log.WarnContext(ctx, "CNI hook: accepting a connection failed, trying again", "error", err)
		select {
		case <-time.After(acceptPause):
		case <-ctx.Done():
		}
	}
}
