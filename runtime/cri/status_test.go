package cri

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// said makes conditions what the runtime said last.
func (n *testNode) said(t *testing.T, conditions ...*runtimeapi.RuntimeCondition) {
	t.Helper()
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: conditions}, Info: map[string]string{"config": "{}"},
	}
	resp.ProtoReflect().SetUnknown(unknownField)
	n.runtime.answer = upstream.Answer{Status: resp, Facts: &upstream.Facts{}}
}

func (n *testNode) status(t *testing.T, verbose bool) *runtimeapi.StatusResponse {
	t.Helper()
	before := proto.Clone(n.runtime.answer.Status)
	answer, err := n.Status(t.Context(), encode(t, &runtimeapi.StatusRequest{Verbose: verbose}), func(context.Context, []byte) ([]byte, error) {
		t.Error("Status waited for the runtime")
		return nil, errFake
	})
	if err != nil {
		t.Fatal(err)
	}
	var resp runtimeapi.StatusResponse
	if err := proto.Unmarshal(answer, &resp); err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal([]byte(resp.ProtoReflect().GetUnknown()), unknownField) {
		t.Error("an unknown field was lost")
	}
	if !proto.Equal(before, n.runtime.answer.Status) {
		t.Error("the remembered answer was changed")
	}
	return &resp
}

var runtimeReady = &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}

func wantConditions(t *testing.T, what string, got *runtimeapi.StatusResponse, want ...*runtimeapi.RuntimeCondition) {
	t.Helper()
	conditions := got.GetStatus().GetConditions()
	same := len(conditions) == len(want)
	for i := range want {
		same = same && proto.Equal(conditions[i], want[i])
	}
	if !same {
		t.Errorf("%s: conditions %v, want %v", what, conditions, want)
	}
}

// NetworkReady is true when both sides are ready, and names the one that is not
// (review row A1).
func TestNetworkReadyIsOfBothSides(t *testing.T) {
	notice := ""
	n := newNode(t, func(c *Config) { c.Notice = func() string { return notice } })
	ready := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	n.said(t, runtimeReady, &runtimeapi.RuntimeCondition{
		Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: "the shim's STATUS a moment ago",
	})
	wantConditions(t, "ready", n.status(t, false), runtimeReady, ready)
	n.said(t, runtimeReady)
	wantConditions(t, "ready, the runtime has no opinion", n.status(t, false), runtimeReady, ready)

	notice = "10-broken.conf: no JSON"
	wantConditions(t, "ready, with a notice", n.status(t, false), runtimeReady,
		&runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true, Message: notice})
	n.installation.err = errors.New("the runtime's side: containerd has not loaded /etc/cni/net.d/00-crinet.conflist")
	wantConditions(t, "the runtime's side is not ready", n.status(t, false), runtimeReady,
		&runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: n.installation.err.Error()})
	n.network.unready = errors.New("no network named x")
	wantConditions(t, "crinet's side is not ready", n.status(t, false), runtimeReady,
		&runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: "no network named x"})
}

func TestNetworkReadyUnderNoop(t *testing.T) {
	n := newNode(t, func(c *Config) { c.Noop, c.Installation = true, nil })
	n.network.unready = errors.New("cannot set the sysctl")
	for _, theirs := range []bool{true, false} {
		n.said(t, runtimeReady, &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: theirs})
		wantConditions(t, "noop", n.status(t, false), runtimeReady,
			&runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: theirs, Message: "noop: cannot set the sysctl"})
	}
}

func TestStatusVerboseTellsMore(t *testing.T) {
	n := newNode(t, func(c *Config) { c.View = func() any { return map[string]bool{"seen": true} } })
	n.said(t)
	if info := n.status(t, false).GetInfo(); len(info) != 0 {
		t.Errorf("info without verbose: %v", info)
	}
	info := n.status(t, true).GetInfo()
	var view struct{ Seen bool }
	if err := json.Unmarshal([]byte(info["crinet"]), &view); err != nil {
		t.Fatal(err)
	}
	if !view.Seen || info["config"] != "{}" {
		t.Errorf("verbose info: %v", info)
	}
}

// A runtime that hangs is told of, and is not ready after half a minute; one that
// is down fails Status as it does without crinetd (review row B8).
func TestStatusOfARuntimeThatDoesNotAnswer(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		silent time.Duration
		ready  bool
		want   string
	}{
		{time.Second, true, ""},
		{12 * time.Second, true, "12s"},
		{upstream.Hung, false, "30s"},
	} {
		n.said(t, runtimeReady)
		n.runtime.answer.Silent = c.silent
		got := n.status(t, false).GetStatus().GetConditions()[0]
		if got.GetStatus() != c.ready || !strings.Contains(got.GetMessage(), c.want) || (c.want == "") != (got.GetMessage() == "") {
			t.Errorf("silent for %v: %v", c.silent, got)
		}
	}
	down := status.Error(codes.Unavailable, "the container runtime does not answer")
	n.runtime.answer.Err = down
	if _, err := n.Status(t.Context(), encode(t, &runtimeapi.StatusRequest{}), nil); !errors.Is(err, down) {
		t.Errorf("Status = %v, want %v", err, down)
	}
}
