package cri

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// RestorePod is CRI's RestorePod: it makes a sandbox from a checkpoint, which
// gets its network as one of RunPodSandbox does.
func (h *Hooks) RestorePod(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	var req runtimeapi.RestorePodRequest
	if proto.Unmarshal(request, &req) != nil {
		return next(ctx, request)
	}
	return h.make(ctx, request, &req, new(runtimeapi.RestorePodResponse), next)
}
