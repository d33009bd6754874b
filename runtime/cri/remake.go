package cri

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// A sandbox that is to be made anew counts as not ready: the kubelet then stops it and
// makes another one for the pod. It notices by ListPodSandbox, which it calls every
// second, that a sandbox has changed, and decides by PodSandboxStatus (kubelet 1.37,
// packages pleg and kuberuntime). Nothing is decoded while there is no such sandbox.

// PodSandboxStatus is CRI's PodSandboxStatus.
func (h *Hooks) PodSandboxStatus(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	response, err := next(ctx, request)
	remaking := h.remaking()
	if err != nil || len(remaking) == 0 {
		return response, err
	}
	var answer runtimeapi.PodSandboxStatusResponse
	if proto.Unmarshal(response, &answer) != nil || !remaking[answer.GetStatus().GetId()] {
		return response, nil
	}
	answer.Status.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	return proto.Marshal(&answer)
}

// ListPodSandbox is CRI's ListPodSandbox. Who asks for sandboxes that are ready gets none
// that is to be made anew.
func (h *Hooks) ListPodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	response, err := next(ctx, request)
	remaking := h.remaking()
	if err != nil || len(remaking) == 0 {
		return response, err
	}
	var asked runtimeapi.ListPodSandboxRequest
	var answer runtimeapi.ListPodSandboxResponse
	if proto.Unmarshal(request, &asked) != nil || proto.Unmarshal(response, &answer) != nil {
		return response, nil
	}
	for _, sandbox := range answer.GetItems() {
		if remaking[sandbox.GetId()] {
			sandbox.State = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		}
	}
	if wanted := asked.GetFilter().GetState(); wanted != nil {
		answer.Items = slices.DeleteFunc(answer.Items, func(s *runtimeapi.PodSandbox) bool { return s.GetState() != wanted.GetState() })
	}
	return proto.Marshal(&answer)
}
