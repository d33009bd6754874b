package cri

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A sandbox that is to be made anew counts as not ready; all others, and all while there
// is none, are answered with the runtime's very bytes.
func TestRemaking(t *testing.T) {
	var remaking map[string]bool
	n := newNode(t, func(c *Config) { c.Remaking = func() map[string]bool { return remaking } })
	ready := runtimeapi.PodSandboxState_SANDBOX_READY
	status := func(id string) []byte {
		return append(encode(t, &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{Id: id, State: ready}}), unknownField...)
	}
	list := append(encode(t, &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "a", State: ready}, {Id: "b", State: ready}}}), unknownField...)
	answering := func(answer []byte) func(context.Context, []byte) ([]byte, error) {
		return func(context.Context, []byte) ([]byte, error) { return answer, nil }
	}
	stateOf := func(id string) runtimeapi.PodSandboxState {
		t.Helper()
		got, err := n.PodSandboxStatus(t.Context(), []byte("request"), answering(status(id)))
		var answer runtimeapi.PodSandboxStatusResponse
		if err != nil || proto.Unmarshal(got, &answer) != nil {
			t.Fatal(err)
		}
		if remaking[id] == cmp.Equal(got, status(id)) {
			t.Errorf("%s with %v: the answer is %q", id, remaking, got)
		}
		return answer.Status.State
	}
	listed := func(filter *runtimeapi.PodSandboxFilter) map[string]runtimeapi.PodSandboxState {
		t.Helper()
		got, err := n.ListPodSandbox(t.Context(), encode(t, &runtimeapi.ListPodSandboxRequest{Filter: filter}), answering(list))
		var answer runtimeapi.ListPodSandboxResponse
		if err != nil || proto.Unmarshal(got, &answer) != nil {
			t.Fatal(err)
		}
		states := make(map[string]runtimeapi.PodSandboxState)
		for _, item := range answer.Items {
			states[item.Id] = item.State
		}
		return states
	}
	gone := runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	if stateOf("a") != ready || !cmp.Equal(listed(nil), map[string]runtimeapi.PodSandboxState{"a": ready, "b": ready}) {
		t.Error("something is made anew although nothing is to be")
	}
	remaking = map[string]bool{"a": true}
	if stateOf("a") != gone || stateOf("b") != ready {
		t.Error("not a alone is not ready")
	}
	if got := listed(nil); !cmp.Equal(got, map[string]runtimeapi.PodSandboxState{"a": gone, "b": ready}) {
		t.Errorf("listed are %v", got)
	}
	onlyReady := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: ready}}
	if got := listed(onlyReady); !cmp.Equal(got, map[string]runtimeapi.PodSandboxState{"b": ready}) {
		t.Errorf("of those that are ready %v are listed", got)
	}
	down := errors.New("the runtime is down")
	fails := func(context.Context, []byte) ([]byte, error) { return nil, down }
	_, statusErr := n.PodSandboxStatus(t.Context(), nil, fails)
	_, listErr := n.ListPodSandbox(t.Context(), nil, fails)
	if !errors.Is(statusErr, down) || !errors.Is(listErr, down) {
		t.Errorf("errors %v, %v", statusErr, listErr)
	}
	if got, err := n.PodSandboxStatus(t.Context(), nil, answering([]byte("\xffjunk"))); err != nil || string(got) != "\xffjunk" {
		t.Errorf("what cannot be decoded became %q, %v", got, err)
	}
}

// Without --drift=recreate the two methods are not hooked at all.
func TestNothingIsHookedForDrift(t *testing.T) {
	methods := newNode(t).Methods()
	for _, method := range []string{runtimeapi.RuntimeService_PodSandboxStatus_FullMethodName, runtimeapi.RuntimeService_ListPodSandbox_FullMethodName} {
		if methods[method] != nil {
			t.Errorf("%s is hooked", method)
		}
	}
}
