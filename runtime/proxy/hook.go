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

// hooked answers a unary call through its hook.
func (p *Proxy) hooked(stream grpc.ServerStream, c *call, hook Hook) error {
	request, err := receiveOne(stream)
	if err != nil {
		return err
	}
	var header, trailer metadata.MD
	answer, err := hook(stream.Context(), request, func(ctx context.Context, request []byte) ([]byte, error) {
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

// receiveOne reads the only message of a unary call. Any other number of them
// is answered as gRPC's own server does.
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

// unary makes the call upstream and waits for its answer. Headers and trailers
// are returned with an error as well.
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
	// After io.EOF the reason is in what RecvMsg returns.
	var f frame
	err = up.RecvMsg(&f)
	header, headerErr := up.Header()
	if err == nil {
		answer, err = f.take(), headerErr
	}
	return answer, header, up.Trailer(), err
}
