package runtime

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// sandboxRequest is a CRI request that names one sandbox.
type sandboxRequest interface {
	proto.Message
	GetPodSandboxId() string
}

// passEnd passes a call on that ends a sandbox, and then makes sure that its
// network is gone. into is what the request decodes into.
func (m *Manager) passEnd(ctx context.Context, verb string, request []byte, into sandboxRequest, next proxy.Forward) ([]byte, error) {
	failpoint.Hit("forward", verb, failpoint.Before)
	response, err := next(ctx, request)
	failpoint.Hit("forward", verb, failpoint.After)
	if err != nil {
		return nil, err
	}
	if err := proto.Unmarshal(request, into); err != nil {
		return nil, undecodable(err)
	}
	if err := m.detachSandbox(ctx, into.GetPodSandboxId()); err != nil {
		return nil, status.Errorf(codes.Internal, "%s is done for sandbox %s, but: %v", verb, into.GetPodSandboxId(), err)
	}
	return response, nil
}

// undecodable is the error for a request that the runtime took and crinetd
// cannot read.
func undecodable(err error) error {
	return status.Errorf(codes.Internal, "the runtime accepted a request that crinetd cannot decode: %v", err)
}
