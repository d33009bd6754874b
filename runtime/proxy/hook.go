package proxy

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// hooked answers a unary call through its hook, which gets ctx.
func (p *Proxy) hooked(ctx context.Context, stream grpc.ServerStream, c *call, hook Hook) error {
	request, err := receiveOne(stream)
	if err != nil {
		return err
	}
	var header, trailer metadata.MD
	answer, err := hook(ctx, request, func(ctx context.Context, request []byte) ([]byte, error) {
		var answer []byte
		var err error
		answer, header, trailer, err = c.unary(ctx, request)
		return answer, err
	})
	stream.SetTrailer(trailer)
	if headerErr := stream.SetHeader(outgoing(header)); headerErr != nil && err == nil {
		err = headerErr
	}
	if err != nil {
		return err
	}
	return stream.SendMsg(&frame{data: mem.BufferSlice{mem.SliceBuffer(answer)}})
}

// receiveOne reads the one message of a unary call. For any other number of
// messages it returns the status that gRPC's own server returns.
func receiveOne(stream grpc.ServerStream) ([]byte, error) {
	var f, extra frame
	err := stream.RecvMsg(&f)
	if errors.Is(err, io.EOF) {
		return nil, status.Error(codes.Internal, "the call carries no request message, it must carry one")
	}
	if err != nil {
		return nil, err
	}
	request := f.take()
	err = stream.RecvMsg(&extra)
	if errors.Is(err, io.EOF) {
		return request, nil
	}
	if err != nil {
		return nil, err
	}
	extra.data.Free()
	return nil, status.Error(codes.Internal, "the call carries more than one request message, it must carry one")
}

// unary makes the call upstream and waits for its answer. It returns headers and
// trailers also with an error.
func (c *call) unary(ctx context.Context, request []byte) (answer []byte, header, trailer metadata.MD, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	up, err := c.open(ctx, &grpc.StreamDesc{})
	if err != nil {
		return nil, nil, nil, err
	}
	err = up.SendMsg(&frame{data: mem.BufferSlice{mem.SliceBuffer(request)}})
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, nil, err
	}
	// After io.EOF, RecvMsg returns the reason.
	var f frame
	err = up.RecvMsg(&f)
	header, headerErr := up.Header()
	if err == nil {
		answer, err = f.take(), headerErr
	}
	return answer, header, up.Trailer(), err
}
