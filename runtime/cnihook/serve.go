package cnihook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni/wire"
)

// serve serves one connection: it reads a request, runs the call with the context
// calls and writes a reply. Who was accepted before the end of ctx is served after
// it as well: it cannot go back into the listen queue.
func (s *Server) serve(ctx, calls context.Context, conn net.Conn) {
	defer func() { <-s.slots }()
	start := time.Now()
	request, err := s.read(ctx, conn)
	if err != nil {
		s.refuse(ctx, conn, err)
		return
	}
	if s.trace != nil && request.TraceParent != "" {
		calls = s.trace(calls, request.TraceParent, request.TraceState)
	}
	callCtx, cancel := context.WithCancelCause(calls)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(conn, cancel)
	}()
	call, reply := s.answer(callCtx, request)
	gone := errors.Is(context.Cause(callCtx), ErrCallerGone)
	cancel(nil)
	writeErr := conn.SetWriteDeadline(time.Now().Add(replyTimeout))
	if writeErr == nil && !gone {
		writeErr = s.send(request.Command, func() error { return wire.WriteReply(conn, reply) })
	}
	closeErr := conn.Close() // ends watch
	<-watched
	s.report(ctx, request.Command, call, reply, outcome{gone: gone, replyErr: errors.Join(writeErr, closeErr), took: time.Since(start)})
}

// read receives the request. It gives up after the request timeout, and soon after
// the end of ctx.
func (s *Server) read(ctx context.Context, conn net.Conn) (*wire.Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(s.requestTimeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(lastRequests)) })
	request, err := wire.ReadRequest(conn)
	if !stop() && err != nil {
		return nil, ErrStopping
	}
	if err != nil {
		return nil, err
	}
	return request, conn.SetReadDeadline(time.Time{})
}

// refuse answers a connection on which no valid request came.
func (s *Server) refuse(ctx context.Context, conn net.Conn, err error) {
	code := wire.CodeDecode
	if errors.Is(err, ErrStopping) {
		code = wire.CodeTryAgainLater
	}
	// A client that connects and leaves only looks whether somebody listens.
	if !errors.Is(err, io.EOF) {
		s.log.WarnContext(ctx, "CNI hook: refused a connection", "error", err)
	}
	replyErr := conn.SetDeadline(time.Now().Add(time.Second))
	if replyErr == nil {
		replyErr = wire.WriteReply(conn, &wire.Reply{Error: &wire.Error{Code: code, Msg: "crinetd: " + err.Error()}})
	}
	if err := errors.Join(replyErr, conn.Close()); err != nil {
		s.log.DebugContext(ctx, "CNI hook: the refusal did not arrive", "error", err)
	}
}

// watch cancels the call when the plugin's process is gone. The plugin sends
// nothing after its request, so a read returns only at the end.
func watch(conn net.Conn, cancel context.CancelCauseFunc) {
	_, err := conn.Read(make([]byte, 1))
	if err == nil {
		cancel(fmt.Errorf("%w: more than one request on a connection", ErrCallerGone))
		return
	}
	cancel(ErrCallerGone)
}

// answer checks the request and runs the call.
func (s *Server) answer(ctx context.Context, request *wire.Request) (*call, *wire.Reply) {
	call, err := newCall(request)
	var result []byte
	switch {
	case err != nil:
	case s.mark != "" && request.Inside == s.mark:
		err = nested(request.Command)
	default:
		result, err = s.dispatch(ctx, request.Command, call)
	}
	if err == nil && len(result) > wire.MaxResult {
		err = fmt.Errorf("the result has %d bytes, %d is the limit", len(result), wire.MaxResult)
	}
	if err != nil {
		return call, &wire.Reply{Error: wireError(call.subject(), err)}
	}
	return call, &wire.Reply{Result: result}
}

// nested answers a call of a plugin that crinetd runs itself: the selected network
// delegates to crinet. ADD and CHECK fail. DEL succeeds, because the operation around
// it removes the attachment. STATUS succeeds, because crinet answers for itself alone;
// otherwise it would repeat its own last failure for ever.
func nested(command string) error {
	switch command {
	case wire.CommandAdd, wire.CommandCheck:
		return wire.Errorf(wire.CodeInvalidConfig, "%s came from a plugin that crinetd runs for this sandbox: the selected network "+
			"delegates to crinet, which would wait for itself. Have --network-plugin name a network that does not, "+
			"and keep 00-crinet.conflist out of the directory in which that plugin looks for networks", command)
	default:
		return nil
	}
}

// dispatch runs the handler. It turns a panic into an error of the call.
func (s *Server) dispatch(ctx context.Context, command string, call *call) (result []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.ErrorContext(ctx, "a CNI call panicked; this is a bug in crinetd, please report it",
				"command", command, "pod", call.Pod.String(), "sandbox", call.ContainerID, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			result, err = nil, fmt.Errorf("crinetd failed in %s: %v; its log has the details", command, r)
		}
	}()
	switch command {
	case wire.CommandAdd:
		result, err = s.handler.Attach(ctx, &call.Call)
		if err != nil {
			return nil, err
		}
		return convertResult(result, call.cniVersion)
	case wire.CommandDel:
		return nil, s.handler.Detach(ctx, &call.Call)
	case wire.CommandCheck:
		return nil, s.handler.Check(ctx, call.Key())
	case wire.CommandStatus:
		return nil, notAvailable(s.handler.Status())
	case wire.CommandGC:
		valid, err := validAttachments(call.config)
		if err != nil {
			return nil, err
		}
		return nil, s.handler.Collect(ctx, valid)
	default: // checked before
		return nil, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_COMMAND %q is unknown", command)
	}
}

// notAvailable makes the answer to STATUS of the reason why the network cannot
// serve ADD, nil if it can (CNI spec, section STATUS, codes 50 and 51).
func notAvailable(err error) error {
	said := asCNIError(err)
	if err == nil || said != nil && (said.Code == wire.CodeNotAvailable || said.Code == wire.CodeLimited) {
		return err
	}
	return wire.Errorf(wire.CodeNotAvailable, "%v", err)
}

// validAttachments returns the attachments that GC must leave (CNI spec, section GC).
func validAttachments(config []byte) ([]types.GCAttachment, error) {
	var conf struct {
		Valid []types.GCAttachment `json:"cni.dev/valid-attachments"`
	}
	if err := json.Unmarshal(config, &conf); err != nil {
		return nil, wire.Errorf(wire.CodeDecode, "cni.dev/valid-attachments: %v", err)
	}
	return conf.Valid, nil
}

// outcome is how a call ended on the connection.
type outcome struct {
	gone     bool
	replyErr error
	took     time.Duration
}

// report logs the outcome of every call. No other place does.
func (s *Server) report(ctx context.Context, command string, call *call, reply *wire.Reply, o outcome) {
	level := slog.LevelDebug
	attrs := []slog.Attr{
		slog.String("command", command), slog.String("pod", call.Pod.String()),
		slog.String("sandbox", call.ContainerID), slog.Duration("duration", o.took),
	}
	if call.NetNS != "" {
		attrs = append(attrs, slog.String("netns", call.NetNS))
	}
	if reply.Error != nil {
		// The runtime asks for STATUS all the time. Package cni logs the change
		// when a network stops being ready.
		if command != wire.CommandStatus {
			level = slog.LevelWarn
		}
		attrs = append(attrs, slog.Uint64("code", uint64(reply.Error.Code)), slog.String("error", reply.Error.Error()))
	}
	switch {
	case o.gone:
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("reply", "not sent: "+ErrCallerGone.Error()))
	case o.replyErr != nil:
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("reply", "not sent: "+o.replyErr.Error()))
	}
	s.log.LogAttrs(ctx, level, "CNI call", attrs...)
}
