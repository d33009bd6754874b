package runtime

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// StopPodSandbox is CRI's StopPodSandbox. The runtime's DEL comes while it is at
// it; when it has answered, the pod's network is gone, or the caller gets an
// error and calls again.
func (m *Manager) StopPodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	failpoint.Hit("forward", "StopPodSandbox", failpoint.Before)
	response, err := next(ctx, request)
	failpoint.Hit("forward", "StopPodSandbox", failpoint.After)
	if err != nil {
		return nil, err
	}
	var req runtimeapi.StopPodSandboxRequest
	if err := proto.Unmarshal(request, &req); err != nil {
		return nil, undecodable(err)
	}
	if err := m.detachSandbox(ctx, req.GetPodSandboxId()); err != nil {
		return nil, status.Errorf(codes.Internal, "sandbox %s is stopped, but: %v", req.GetPodSandboxId(), err)
	}
	return response, nil
}

// undecodable is the error for a request that the runtime took and crinetd
// cannot read.
func undecodable(err error) error {
	return status.Errorf(codes.Internal, "the runtime accepted a request that crinetd cannot decode: %v", err)
}
