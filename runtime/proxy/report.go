package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// report logs and counts the outcome of every call, and recovers from panics. No
// other place does.
func (p *Proxy) report(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	start := time.Now()
	defer func() {
		if r := recover(); r != nil {
			p.log.LogAttrs(stream.Context(), slog.LevelError, "a CRI call panicked; this is a bug in crinetd, please report it",
				slog.String("method", info.FullMethod), slog.String("panic", fmt.Sprint(r)), slog.String("stack", string(debug.Stack())))
			err = status.Errorf(codes.Internal, "crinetd failed in %s: %v; its log has the details", info.FullMethod, r)
		}
		p.outcome(stream.Context(), info.FullMethod, err, time.Since(start))
	}()
	return handler(srv, stream)
}

// outcome logs and counts the end of a call.
func (p *Proxy) outcome(ctx context.Context, method string, err error, d time.Duration) {
	st := convert(err)
	label := method
	if !p.methods[method] {
		label = OtherMethod
	}
	p.onResult(label, st.Code(), d)
	level := levelOf(st.Code())
	if !p.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method), slog.String("code", st.Code().String()), slog.Duration("duration", d)}
	if err != nil {
		attrs = append(attrs, slog.String("error", st.Message()))
	}
	p.log.LogAttrs(ctx, level, "CRI call", attrs...)
}

// convert returns the status that gRPC's server makes of an error.
func convert(err error) *status.Status {
	if st, ok := status.FromError(err); ok {
		return st
	}
	return status.FromContextError(err)
}

// levelOf returns info for codes that callers meet in everyday use, and warn for
// those that an operator should look at.
func levelOf(code codes.Code) slog.Level {
	switch code {
	case codes.OK:
		return slog.LevelDebug
	case codes.Canceled, codes.NotFound, codes.AlreadyExists, codes.InvalidArgument,
		codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented, codes.Aborted:
		return slog.LevelInfo
	default:
		return slog.LevelWarn
	}
}
