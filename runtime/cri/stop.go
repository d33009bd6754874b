package cri

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// StopPodSandbox is CRI's StopPodSandbox. The runtime's DEL comes while the
// runtime is at it. When StopPodSandbox returns, the pod's network is gone, or
// the caller gets an error and calls again.
func (h *Hooks) StopPodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	return h.end(ctx, "StopPodSandbox", request, new(runtimeapi.StopPodSandboxRequest), next)
}

// sandboxRequest is a request that names one sandbox.
type sandboxRequest interface {
	proto.Message
	GetPodSandboxId() string
}

// end passes a call on that ends a sandbox, and then makes sure that the
// sandbox's network is gone. The request is decoded into req.
func (h *Hooks) end(ctx context.Context, verb string, request []byte, req sandboxRequest, next proxy.Forward) ([]byte, error) {
	if proto.Unmarshal(request, req) == nil {
		defer h.engine.Ending(req.GetPodSandboxId())()
	}
	response, err := next(ctx, request)
	if err != nil {
		return nil, err
	}
	if err := proto.Unmarshal(request, req); err != nil {
		return nil, status.Errorf(codes.Internal, "the runtime accepted a %s that crinetd cannot decode: %v", verb, err)
	}
	if err := h.engine.DetachSandbox(ctx, req.GetPodSandboxId()); err != nil {
		return nil, status.Errorf(codes.Internal, "%s is done for sandbox %s, but: %v", verb, req.GetPodSandboxId(), err)
	}
	return response, nil
}
