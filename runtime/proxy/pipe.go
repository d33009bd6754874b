package proxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pipe passes a call on as two independent streams of frames. A unary call is
// the case of one frame each way.
func (p *Proxy) pipe(stream grpc.ServerStream, c *call) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	if c.method == runtimeapi.RuntimeService_GetContainerEvents_FullMethodName {
		// It has no end of its own and would hold up the end of Serve. The
		// kubelet opens it again.
		defer context.AfterFunc(p.stopping, func() {
			cancel(status.Error(codes.Unavailable, "crinetd is stopping"))
		})()
	}
	up, err := c.open(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true})
	if err != nil {
		return err
	}
	// It ends with the call: the return of the handler cancels both streams.
	go passRequests(stream, up, cancel)
	err = passAnswers(stream, up)
	if ctx.Err() != nil && stream.Context().Err() == nil {
		return context.Cause(ctx) // ended on this side, for this reason
	}
	return err
}

// passRequests copies the caller's messages and its half-close upstream. What
// goes wrong on the caller's side cancels the call with its reason; the end
// of the upstream side is seen by passAnswers.
func passRequests(stream grpc.ServerStream, up grpc.ClientStream, cancel context.CancelCauseFunc) {
	var f frame
	for {
		err := stream.RecvMsg(&f)
		if errors.Is(err, io.EOF) {
			if err := up.CloseSend(); err != nil {
				cancel(err)
			}
			return
		}
		if err != nil {
			cancel(err)
			return
		}
		if err := up.SendMsg(&f); err != nil {
			if !errors.Is(err, io.EOF) {
				cancel(err)
			}
			return
		}
	}
}

// passAnswers copies headers, messages and trailers to the caller and returns
// the status that upstream ended with.
func passAnswers(stream grpc.ServerStream, up grpc.ClientStream) error {
	header, err := up.Header()
	if err != nil {
		return err
	}
	// Without headers the call ended at once: its status comes below.
	if header != nil {
		if err := stream.SendHeader(outgoing(header)); err != nil {
			return err
		}
	}
	var f frame
	for {
		if err := up.RecvMsg(&f); err != nil {
			stream.SetTrailer(up.Trailer())
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.SendMsg(&f); err != nil {
			return err
		}
	}
}
