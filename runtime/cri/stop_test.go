package cri

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

func TestStopAndRemoveMakeSureThatTheNetworkIsGone(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name    string
		hook    proxy.Hook
		request func(string) []byte
	}{
		{"stop", n.StopPodSandbox, func(id string) []byte {
			return append(encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}), unknownField...)
		}},
		{"remove", n.RemovePodSandbox, func(id string) []byte {
			return append(encode(t, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}), unknownField...)
		}},
	} {
		for _, id := range []string{c.name + "-full", c.name + "-prefix"} {
			n.mustAdd(t, id+"0123456789")
			request := c.request(strings.Replace(id, "-full", "-full0123456789", 1))
			for range 2 {
				answer, err := c.hook(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) { return got, nil })
				if err != nil || !cmp.Equal(answer, request) {
					t.Fatalf("%s %s = %q, %v", c.name, id, answer, err)
				}
			}
			if r := n.record(t, id+"0123456789"); r != nil {
				t.Errorf("%s %s: record left: %+v", c.name, id, r)
			}
		}
	}
}

func TestStopLeavesTheNetworkWhenTheRuntimeFails(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	refusal := status.Error(codes.Unknown, "cannot kill")
	request := encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "a"})
	if _, err := n.StopPodSandbox(t.Context(), request, func(context.Context, []byte) ([]byte, error) { return nil, refusal }); !errors.Is(err, refusal) {
		t.Errorf("StopPodSandbox = %v, want the runtime's error", err)
	}
	if n.record(t, "a") == nil {
		t.Error("the network of a sandbox that may still run was removed")
	}
}

func TestStopReportsANetworkThatStays(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	n.network.tear = errFake
	request := encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "a"})
	_, err := n.StopPodSandbox(t.Context(), request, func(context.Context, []byte) ([]byte, error) { return nil, nil })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), errFake.Error()) {
		t.Errorf("StopPodSandbox = %v, want Internal with the plugin's failure", err)
	}
}

func TestAmbiguousPrefixIsLeftAlone(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "ab1")
	n.mustAdd(t, "ab2")
	request := encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "ab"})
	if _, err := n.StopPodSandbox(t.Context(), request, func(context.Context, []byte) ([]byte, error) { return nil, nil }); err != nil {
		t.Error(err)
	}
	if n.record(t, "ab1") == nil || n.record(t, "ab2") == nil {
		t.Error("a sandbox lost its network for the prefix of another")
	}
}
