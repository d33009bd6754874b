package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Sandboxes asks a container runtime for its sandboxes by CRI.
type Sandboxes struct {
	client runtimeapi.RuntimeServiceClient
}

// NewSandboxes asks the runtime at the other end of conn.
func NewSandboxes(conn grpc.ClientConnInterface) *Sandboxes {
	return &Sandboxes{client: runtimeapi.NewRuntimeServiceClient(conn)}
}

// List returns the ids of all sandboxes, ready or not.
func (s *Sandboxes) List(ctx context.Context) (map[string]bool, error) {
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
func (s *Sandboxes) Has(ctx context.Context, id string) (bool, error) {
	_, err := s.client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask the runtime for sandbox %s: %w", id, err)
	}
	return true, nil
}

// NetNS returns the path of a sandbox's network namespace, from the OCI runtime spec in
// the runtime's verbose status; empty if that has none.
func (s *Sandboxes) NetNS(ctx context.Context, id string) (string, error) {
	resp, err := s.client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return "", fmt.Errorf("ask the runtime for the network namespace of sandbox %s: %w", id, err)
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(resp.GetInfo()["info"]), &info); err != nil {
		return "", fmt.Errorf("read the runtime's status of sandbox %s: %w", id, err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" {
			return ns.Path, nil
		}
	}
	return "", nil
}

// Remove stops and removes a sandbox.
func (s *Sandboxes) Remove(ctx context.Context, id string) error {
	_, stopErr := s.client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	_, removeErr := s.client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	if err := errors.Join(stopErr, removeErr); err != nil {
		return fmt.Errorf("remove sandbox %s at the runtime: %w", id, err)
	}
	return nil
}
