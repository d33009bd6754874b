package runtime

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

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

// Status is CRI's Status: the runtime's answer, or its last one if it takes
// long, in which the condition NetworkReady is crinetd's, from memory. With
// verbose, info.crinet tells more.
// Under noop the condition stays the runtime's, with what noop has to report.
func (m *Manager) Status(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	var req runtimeapi.StatusRequest
	if err := proto.Unmarshal(request, &req); err != nil {
		return next(ctx, request)
	}
	response, err := m.statuses.ask(ctx, request, req.GetVerbose(), m.now, next)
	if err != nil {
		return nil, err
	}
	var resp runtimeapi.StatusResponse
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

const (
	// statusPatience is how long the runtime may take for Status while there is
	// an earlier answer of it.
	statusPatience = 30 * time.Millisecond
	// statusMemory is how long an answer serves in place of the next: as long as
	// the kubelet waits for one.
	statusMemory = 2 * time.Minute
)

// statuses remember the runtime's last answers to Status. containerd answers it
// behind a lock of its CNI code, which a hung ADD holds while the conf dir
// changes. The zero value is ready.
type statuses struct {
	mu   sync.Mutex
	last [2]struct { // without and with verbose
		response []byte
		at       time.Time
	}
}

// ask asks the runtime. One that takes its time is answered for by what it said
// last, if that is not long ago.
func (s *statuses) ask(ctx context.Context, request []byte, verbose bool, now func() time.Time, next proxy.Forward) ([]byte, error) {
	i := 0
	if verbose {
		i = 1
	}
	s.mu.Lock()
	known := s.last[i]
	s.mu.Unlock()
	askCtx, cancel := ctx, context.CancelFunc(func() {})
	recent := known.response != nil && now().Sub(known.at) < statusMemory
	if recent {
		askCtx, cancel = context.WithTimeout(ctx, statusPatience)
	}
	defer cancel()
	response, err := next(askCtx, request)
	if err != nil {
		if recent && askCtx.Err() != nil && ctx.Err() == nil {
			return known.response, nil
		}
		return nil, err
	}
	s.mu.Lock()
	s.last[i].response, s.last[i].at = response, now()
	s.mu.Unlock()
	return response, nil
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
