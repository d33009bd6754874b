package cri

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// UpdateRuntimeConfig is CRI's UpdateRuntimeConfig: crinetd learns the pod CIDR
// before the runtime does. A value that is no CIDR changes nothing anywhere.
func (h *Hooks) UpdateRuntimeConfig(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	var req runtimeapi.UpdateRuntimeConfigRequest
	if proto.Unmarshal(request, &req) != nil {
		return next(ctx, request)
	}
	if cidr := req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(); cidr != "" {
		changed, err := h.podCIDRs.Set(cidr)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "pod CIDR %q: %v", cidr, err)
		}
		if changed {
			h.log.Info("pod CIDR set by UpdateRuntimeConfig", "podCIDR", cidr)
		}
	}
	return next(ctx, request)
}
