package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// RemovePodSandbox is CRI's RemovePodSandbox. The runtime stops a sandbox that
// still runs, and so calls DEL. When RemovePodSandbox returns, the pod's network
// is gone, or the caller gets an error and calls again.
func (h *Hooks) RemovePodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	return h.end(ctx, "RemovePodSandbox", request, new(runtimeapi.RemovePodSandboxRequest), next)
}
