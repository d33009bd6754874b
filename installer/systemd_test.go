package installer

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The tree of an image is no running system, also when it has a folder that a running
// one has.
func TestLive(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if Live(root) != nil {
		t.Error("an empty tree counts as a running system")
	}
	if err := os.MkdirAll(filepath.Join(root, "run/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	if Live(root) != nil {
		t.Error("a tree that is not the host's counts as a running system")
	}
}

// criDouble answers Status.
type criDouble struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	ready bool
}

func (c *criDouble) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true},
		{Type: runtimeapi.NetworkReady, Status: c.ready, Reason: "R", Message: "no usable network"},
	}}}, nil
}

// A node is ready when both conditions are true; the error says what is not.
func TestAnswers(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "x") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("unix", filepath.Join(dir, "cri.sock"))
	if err != nil {
		t.Fatal(err)
	}
	cri, server, served := &criDouble{}, grpc.NewServer(), make(chan error, 1)
	runtimeapi.RegisterRuntimeServiceServer(server, cri)
	go func() { served <- server.Serve(lis) }()
	s := &systemd{root: dir}
	if err := s.Answers(t.Context(), "/cri.sock"); err == nil || !strings.Contains(err.Error(), "no usable network") {
		t.Errorf("a network that is not ready: %v", err)
	}
	cri.ready = true
	if err := s.Answers(t.Context(), "/cri.sock"); err != nil {
		t.Errorf("a node that is ready: %v", err)
	}
	server.Stop()
	if err := errors.Join(<-served, os.RemoveAll(dir)); err != nil {
		t.Error(err)
	}
	if err := s.Answers(t.Context(), "/cri.sock"); err == nil {
		t.Error("nobody answers, and that is no error")
	}
}
