package cnihook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/failpoint"
)

// serve is one connection: a request, its call, a reply. New calls stop with
// ctx; the call itself has the context calls.
func (s *Server) serve(ctx, calls context.Context, conn net.Conn) {
	defer func() { <-s.slots }()
	start := time.Now()
	request, err := s.read(ctx, conn)
	if err != nil {
		s.refuse(ctx, conn, err)
		return
	}
	callCtx, cancel := context.WithCancelCause(calls)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(conn, cancel)
	}()
	call, reply := s.answer(ctx, callCtx, request)
	gone := errors.Is(context.Cause(callCtx), ErrCallerGone)
	cancel(nil)
	writeErr := conn.SetWriteDeadline(time.Now().Add(replyTimeout))
	if writeErr == nil && !gone {
		failpoint.Hit("answer", request.Command, failpoint.Before)
		writeErr = wire.WriteReply(conn, reply)
		failpoint.Hit("answer", request.Command, failpoint.After)
	}
	closeErr := conn.Close() // ends watch
	<-watched
	s.report(ctx, request.Command, call, reply, outcome{gone: gone, replyErr: errors.Join(writeErr, closeErr), took: time.Since(start)})
}

// read receives the request. It is cut off by the request timeout, and by the
// end of ctx.
func (s *Server) read(ctx context.Context, conn net.Conn) (*wire.Request, error) {
	if err := conn.SetReadDeadline(time.Now().Add(s.requestTimeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	request, err := wire.ReadRequest(conn)
	if !stop() && err != nil {
		return nil, ErrStopping
	}
	if err != nil {
		return nil, err
	}
	return request, conn.SetReadDeadline(time.Time{})
}

// refuse answers what never became a call.
func (s *Server) refuse(ctx context.Context, conn net.Conn, err error) {
	code := uint(wire.CodeDecode)
	if errors.Is(err, ErrStopping) {
		code = wire.CodeTryAgainLater
	}
	// Who connects and leaves only looks whether somebody serves here.
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
// nothing after its request, so whatever a read gives is the end.
func watch(conn net.Conn, cancel context.CancelCauseFunc) {
	_, err := conn.Read(make([]byte, 1))
	if err == nil {
		cancel(fmt.Errorf("%w: more than one request on a connection", ErrCallerGone))
		return
	}
	cancel(ErrCallerGone)
}

// answer checks the request and runs the call.
func (s *Server) answer(ctx, callCtx context.Context, request *wire.Request) (*Call, *wire.Reply) {
	call, err := newCall(request)
	subject := call.Pod.String()
	if subject != "" {
		subject = "pod " + subject
	} else if call.ContainerID != "" {
		subject = "sandbox " + call.ContainerID
	}
	var result []byte
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = stopping(request.Command)
	default:
		result, err = s.dispatch(callCtx, request.Command, call)
	}
	if err == nil && len(result) > wire.MaxResult {
		err = fmt.Errorf("the result has %d bytes, %d is the limit", len(result), wire.MaxResult)
	}
	if err != nil {
		return call, &wire.Reply{Error: wireError(subject, err)}
	}
	return call, &wire.Reply{Result: result}
}

func stopping(command string) error {
	code := uint(wire.CodeTryAgainLater)
	if command == wire.CommandStatus {
		code = wire.CodeNotAvailable
	}
	return &wire.Error{Code: code, Msg: ErrStopping.Error()}
}

// dispatch runs the handler. A panic is an error of this call.
func (s *Server) dispatch(ctx context.Context, command string, call *Call) (result []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.ErrorContext(ctx, "a CNI call panicked; this is a bug in crinetd, please report it",
				"command", command, "pod", call.Pod.String(), "sandbox", call.ContainerID, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			result, err = nil, fmt.Errorf("crinetd failed in %s: %v; its log has the details", command, r)
		}
	}()
	switch command {
	case wire.CommandAdd:
		result, err = s.handler.Add(ctx, call)
		if err != nil {
			return nil, err
		}
		return convertResult(result, call.CNIVersion)
	case wire.CommandDel:
		return nil, s.handler.Del(ctx, call)
	case wire.CommandCheck:
		return nil, s.handler.Check(ctx, call)
	case wire.CommandStatus:
		return nil, s.handler.Status(ctx)
	case wire.CommandGC:
		return nil, s.handler.GC(ctx, call)
	default: // checked before
		return nil, wire.Errorf(wire.CodeInvalidEnvironment, "CNI_COMMAND %q is unknown", command)
	}
}

// outcome is how a call ended on the connection.
type outcome struct {
	gone     bool
	replyErr error
	took     time.Duration
}

// report is the one place where the outcomes of calls are logged.
func (s *Server) report(ctx context.Context, command string, call *Call, reply *wire.Reply, o outcome) {
	level := slog.LevelDebug
	attrs := []slog.Attr{
		slog.String("command", command), slog.String("pod", call.Pod.String()),
		slog.String("sandbox", call.ContainerID), slog.Duration("duration", o.took),
	}
	if reply.Error != nil {
		// The runtime asks for STATUS all the time; who decides that the
		// network is not ready logs the change.
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
