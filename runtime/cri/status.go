package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
	"github.com/crinet-project/crinet/runtime/upstream"
)

const (
	// notReadyReason is the condition's reason that kubelets know from containerd
	// and dockershim.
	notReadyReason = "NetworkPluginNotReady"
	// silentReason is RuntimeReady's reason for a runtime that hangs.
	silentReason = "RuntimeNotAnswering"
	// infoKey is crinetd's entry in the verbose info of Status.
	infoKey = "crinet"
	// oldAnswer is the silence from which on Status says how old its answer is.
	oldAnswer = 5 * time.Second
)

// Status is CRI's Status, answered from what the runtime said last, so that it
// waits for nobody. The condition NetworkReady is true when crinet's network is
// ready and the runtime uses crinet; under noop it stays the runtime's, with
// what noop has to report. A runtime that does not answer for half a minute is
// not ready. With verbose, info.crinet tells more.
func (h *Hooks) Status(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	var req runtimeapi.StatusRequest
	if proto.Unmarshal(request, &req) != nil {
		return next(ctx, request)
	}
	answer := h.runtime.Status(ctx)
	if answer.Err != nil {
		return nil, answer.Err
	}
	resp, ok := proto.Clone(answer.Status).(*runtimeapi.StatusResponse)
	if !ok || resp == nil {
		return nil, status.Error(codes.Unavailable, "the container runtime has not answered yet")
	}
	if resp.Status == nil {
		resp.Status = &runtimeapi.RuntimeStatus{}
	}
	tellSilence(resp.Status, answer)
	h.setNetworkReady(resp.Status)
	if !req.GetVerbose() {
		resp.Info = nil
		return proto.Marshal(resp)
	}
	view, err := json.Marshal(h.view())
	if err != nil {
		return nil, status.Errorf(codes.Internal, "status: %v", err)
	}
	if resp.Info == nil {
		resp.Info = make(map[string]string)
	}
	resp.Info[infoKey] = string(view)
	return proto.Marshal(resp)
}

// tellSilence says how old the answer is, and takes RuntimeReady from a runtime
// that hangs.
func tellSilence(s *runtimeapi.RuntimeStatus, answer upstream.Answer) {
	if answer.Silent < oldAnswer {
		return
	}
	c := condition(s, runtimeapi.RuntimeReady)
	c.Message = join(c.Message, fmt.Sprintf("the container runtime has not answered Status for %s; this is its last answer",
		answer.Silent.Round(time.Second)))
	if answer.Silent >= upstream.Hung {
		c.Status, c.Reason = false, silentReason
	}
}

// setNetworkReady makes the condition NetworkReady that of both sides.
func (h *Hooks) setNetworkReady(s *runtimeapi.RuntimeStatus) {
	c := condition(s, runtimeapi.NetworkReady)
	err := h.Ready()
	if h.noop {
		if err != nil {
			c.Message = join(c.Message, "noop: "+err.Error())
		}
		return
	}
	c.Status, c.Reason, c.Message = err == nil, "", h.notice()
	if err != nil {
		c.Reason, c.Message = notReadyReason, err.Error()
	}
}

// condition returns a condition of a type, which it adds as true if it is not
// there.
func condition(s *runtimeapi.RuntimeStatus, typ string) *runtimeapi.RuntimeCondition {
	for _, c := range s.Conditions {
		if c.GetType() == typ {
			return c
		}
	}
	c := &runtimeapi.RuntimeCondition{Type: typ, Status: true}
	s.Conditions = append(s.Conditions, c)
	return c
}

// join adds a sentence to a condition's message.
func join(message, more string) string {
	return strings.TrimPrefix(message+"; "+more, "; ")
}
