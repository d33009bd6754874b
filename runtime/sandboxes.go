package runtime

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRISandboxes asks a container runtime for its sandboxes by CRI. Connect must
// be called before the first question.
type CRISandboxes struct {
	client runtimeapi.RuntimeServiceClient
}

// Connect sets the connection to the runtime.
func (s *CRISandboxes) Connect(conn grpc.ClientConnInterface) {
	s.client = runtimeapi.NewRuntimeServiceClient(conn)
}

// List returns the ids of all sandboxes, ready or not.
func (s *CRISandboxes) List(ctx context.Context) (map[string]bool, error) {
	resp, err := s.client.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, fmt.Errorf("list the runtime's sandboxes: %w", err)
	}
	ids := make(map[string]bool, len(resp.GetItems()))
	for _, sandbox := range resp.GetItems() {
		ids[sandbox.GetId()] = true
	}
	return ids, nil
}

// Has says whether the runtime has a sandbox of that id.
func (s *CRISandboxes) Has(ctx context.Context, id string) (bool, error) {
	_, err := s.client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask the runtime for sandbox %s: %w", id, err)
	}
	return true, nil
}
