package proxy

import (
	"fmt"

	"google.golang.org/grpc/mem"
)

// frame is one gRPC message as it came from the wire. It owns one reference to its
// buffers until it is sent or freed.
type frame struct {
	data mem.BufferSlice
}

// take copies the message into one slice and gives the buffers back.
func (f *frame) take() []byte {
	message := f.data.Materialize()
	f.data.Free()
	f.data = nil
	return message
}

// rawCodec moves frames from and to the wire without looking into them.
type rawCodec struct{}

// Marshal hands the buffers of a frame over to gRPC, which frees them.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("raw codec cannot send a %T", v)
	}
	data := f.data
	f.data = nil
	return data, nil
}

// Unmarshal takes a reference to the buffers, so that they outlive the call.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("raw codec cannot receive into a %T", v)
	}
	data.Ref()
	f.data = data
	return nil
}

// Name is the content-subtype that upstream sees. CRI is protobuf, and a
// server picks its codec by this name.
func (rawCodec) Name() string { return protoSubtype }
