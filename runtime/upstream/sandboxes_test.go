package upstream

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxRuntime has sandboxes, and one that it does not let go of.
type sandboxRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	mu    sync.Mutex
	calls []string // verb and sandbox
}

const stubborn = "stubborn"

func (r *sandboxRuntime) note(call string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, call)
}

func (r *sandboxRuntime) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	if req.GetFilter() != nil {
		return nil, status.Error(codes.InvalidArgument, "all sandboxes are wanted")
	}
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		{Id: "a"}, {Id: stubborn, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	}}, nil
}

func (r *sandboxRuntime) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	switch req.GetPodSandboxId() {
	case "a":
		return withSpec(`{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}`), nil
	case "host":
		return withSpec(`{"type": "pid"}`), nil
	case stubborn:
		return nil, status.Error(codes.Unknown, "shim is gone")
	}
	return nil, status.Error(codes.NotFound, "no such sandbox")
}

func (r *sandboxRuntime) StopPodSandbox(_ context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.note("stop " + req.GetPodSandboxId())
	if req.GetPodSandboxId() == stubborn {
		return nil, status.Error(codes.Unknown, "cannot stop")
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func (r *sandboxRuntime) RemovePodSandbox(_ context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.note("remove " + req.GetPodSandboxId())
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// withSpec is a verbose status with these namespaces in its OCI runtime spec.
func withSpec(namespaces string) *runtimeapi.PodSandboxStatusResponse {
	return &runtimeapi.PodSandboxStatusResponse{Info: map[string]string{
		"info": `{"runtimeSpec": {"linux": {"namespaces": [` + namespaces + `]}}}`,
	}}
}

func TestSandboxes(t *testing.T) {
	r := &sandboxRuntime{}
	path := filepath.Join(t.TempDir(), "s")
	kill := serve(t, path, r)
	s := NewSandboxes(dial(t, path))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()

	ids, err := s.List(ctx)
	if got := slices.Sorted(maps.Keys(ids)); err != nil || !slices.Equal(got, []string{"a", stubborn}) {
		t.Errorf("List = %v, %v; want all sandboxes, ready or not", got, err)
	}
	for id, want := range map[string]bool{"a": true, "gone": false} {
		if has, err := s.Has(ctx, id); err != nil || has != want {
			t.Errorf("Has(%s) = %v, %v; want %v", id, has, err, want)
		}
	}
	if _, err := s.Has(ctx, stubborn); err == nil || !strings.Contains(err.Error(), stubborn) {
		t.Errorf("Has of a runtime that cannot tell = %v, want an error that names the sandbox", err)
	}
	for id, want := range map[string]string{"a": "/run/netns/a", "host": ""} {
		if path, err := s.NetNS(ctx, id); err != nil || path != want {
			t.Errorf("NetNS(%s) = %q, %v; want %q", id, path, err, want)
		}
	}
	if err := s.Remove(ctx, "a"); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, stubborn); err == nil || !strings.Contains(err.Error(), "cannot stop") {
		t.Errorf("Remove = %v, want why it failed", err)
	}
	kill()
	r.mu.Lock()
	defer r.mu.Unlock()
	if want := []string{"stop a", "remove a", "stop " + stubborn, "remove " + stubborn}; !slices.Equal(r.calls, want) {
		t.Errorf("the runtime was asked to %v, want %v", r.calls, want)
	}
	if _, err := s.List(ctx); err == nil {
		t.Error("List works without a runtime")
	}
}
