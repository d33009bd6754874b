package runtime

import (
	"context"
	"encoding/json"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// notReadyReason is the condition's reason that kubelets know from containerd
// and dockershim.
const notReadyReason = "NetworkPluginNotReady"

// infoKey is crinetd's entry in the verbose info of Status.
const infoKey = "crinet"

// Status is CRI's Status: the runtime's answer, in which the condition
// NetworkReady is crinetd's, from memory. With verbose, info.crinet tells more.
// Under noop the condition stays the runtime's, with what noop has to report.
func (m *Manager) Status(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	response, err := next(ctx, request)
	if err != nil {
		return nil, err
	}
	var req runtimeapi.StatusRequest
	var resp runtimeapi.StatusResponse
	if err := proto.Unmarshal(request, &req); err != nil {
		return nil, undecodable(err)
	}
	if err := proto.Unmarshal(response, &resp); err != nil {
		return nil, status.Errorf(codes.Internal, "the runtime's Status cannot be decoded: %v", err)
	}
	if resp.Status == nil {
		resp.Status = &runtimeapi.RuntimeStatus{}
	}
	m.setNetworkReady(resp.Status)
	if req.GetVerbose() {
		info, err := json.Marshal(m.View())
		if err != nil {
			return nil, status.Errorf(codes.Internal, "status: %v", err)
		}
		if resp.Info == nil {
			resp.Info = make(map[string]string)
		}
		resp.Info[infoKey] = string(info)
	}
	return proto.Marshal(&resp)
}

// setNetworkReady makes the condition NetworkReady crinetd's.
func (m *Manager) setNetworkReady(s *runtimeapi.RuntimeStatus) {
	var condition *runtimeapi.RuntimeCondition
	for _, c := range s.Conditions {
		if c.GetType() == runtimeapi.NetworkReady {
			condition = c
		}
	}
	if condition == nil {
		condition = &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: !m.networks()}
		s.Conditions = append(s.Conditions, condition)
	}
	err := m.Plugin.Status()
	if !m.networks() {
		if err != nil {
			condition.Message = strings.Trim(condition.Message+"; noop: "+err.Error(), "; ")
		}
		return
	}
	condition.Status, condition.Reason, condition.Message = err == nil, "", m.Notice()
	if err != nil {
		condition.Reason, condition.Message = notReadyReason, err.Error()
	}
}
