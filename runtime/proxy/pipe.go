package proxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// pipe passes a call on as two independent streams of frames. A unary call has
// one frame in each direction.
func (p *Proxy) pipe(u *underWay, stream grpc.ServerStream, c *call) error {
	up, err := c.open(u.ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true})
	if err != nil {
		return err
	}
	// The goroutine ends with the call: when the handler returns, gRPC cancels both
	// streams.
	go passRequests(stream, up, u.cancel)
	sendHeader := stream.SendHeader
	if p.unary[c.method] {
		sendHeader = stream.SetHeader // goes out with the answer, in one write
	}
	return passAnswers(stream, up, sendHeader)
}

// passRequests copies the caller's messages and its half-close upstream. A failure
// on the caller's side cancels the call with its reason; passAnswers sees the end
// of the upstream side.
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

// passAnswers copies headers, messages and trailers to the caller. It returns the
// status with which upstream ended the call.
func passAnswers(stream grpc.ServerStream, up grpc.ClientStream, sendHeader func(metadata.MD) error) error {
	header, err := up.Header()
	if err != nil {
		return err
	}
	// Without headers the call ended at once; RecvMsg returns its status.
	if header != nil {
		if err := sendHeader(outgoing(header)); err != nil {
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
