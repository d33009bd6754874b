package runtime

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// StopPodSandbox is CRI's StopPodSandbox. The runtime's DEL comes while it is at
// it; when it has answered, the pod's network is gone, or the caller gets an
// error and calls again.
func (m *Manager) StopPodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	return m.passEnd(ctx, "StopPodSandbox", request, new(runtimeapi.StopPodSandboxRequest), next)
}
