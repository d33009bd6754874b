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

// RemovePodSandbox is CRI's RemovePodSandbox. The runtime stops a sandbox that
// still runs, and so calls DEL; when it has answered, the pod's network is gone,
// or the caller gets an error and calls again.
func (m *Manager) RemovePodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	failpoint.Hit("forward", "RemovePodSandbox", failpoint.Before)
	response, err := next(ctx, request)
	failpoint.Hit("forward", "RemovePodSandbox", failpoint.After)
	if err != nil {
		return nil, err
	}
	var req runtimeapi.RemovePodSandboxRequest
	if err := proto.Unmarshal(request, &req); err != nil {
		return nil, undecodable(err)
	}
	if err := m.detachSandbox(ctx, req.GetPodSandboxId()); err != nil {
		return nil, status.Errorf(codes.Internal, "sandbox %s is removed, but: %v", req.GetPodSandboxId(), err)
	}
	return response, nil
}
