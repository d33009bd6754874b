package cri

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
)

// removeTimeout bounds the removal of a sandbox that lost its network.
const removeTimeout = time.Minute

// RunPodSandbox is CRI's RunPodSandbox: steps 1 and 4 of a sandbox's lifecycle;
// the runtime's ADD takes the two in between. A request that crinetd cannot
// decode goes on all the same: the runtime says what is wrong with it.
func (h *Hooks) RunPodSandbox(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
	var req runtimeapi.RunPodSandboxRequest
	if proto.Unmarshal(request, &req) != nil {
		return next(ctx, request)
	}
	return h.make(ctx, request, &req, new(runtimeapi.RunPodSandboxResponse), next)
}

// sandboxMaker is a request that has the runtime make a sandbox.
type sandboxMaker interface {
	GetConfig() *runtimeapi.PodSandboxConfig
	GetRuntimeHandler() string
}

// sandboxMade is the response to one.
type sandboxMade interface {
	proto.Message
	GetPodSandboxId() string
}

// make has the runtime make a sandbox: admission, the call, what became of it.
func (h *Hooks) make(ctx context.Context, request []byte, req sandboxMaker, made sandboxMade, next proxy.Forward) ([]byte, error) {
	if h.noop || hostNetwork(req.GetConfig()) || !h.installation.Serves(req.GetRuntimeHandler()) {
		return next(ctx, request)
	}
	flight, err := h.admit(ctx, req.GetConfig())
	if err != nil {
		h.failed(req.GetConfig(), "", err)
		return nil, err
	}
	defer flight.End()

	callCtx, end := answerInTime(ctx, flight)
	defer end()
	response, err := next(callCtx, request)
	if err != nil {
		if flight.Cause() == nil && !flight.Adding() { // otherwise its ADD says why
			h.failed(req.GetConfig(), "", err)
		}
		flight.Failed(ctx, outcomeUnknown(err))
		if errors.Is(context.Cause(callCtx), errNoTime) {
			return nil, status.Errorf(codes.DeadlineExceeded, "%v; the runtime is still removing the sandbox, and the caller does not wait any longer", flight.Cause())
		}
		return nil, err
	}
	if err := flight.Started(ctx); err != nil {
		h.failed(req.GetConfig(), idOf(response, made), err)
		return h.withoutNetwork(ctx, response, made, err)
	}
	h.bypass.over()
	return response, nil
}

// failed keeps why a pod has no network, for people.
func (h *Hooks) failed(config *runtimeapi.PodSandboxConfig, sandbox string, err error) {
	if h.recorder == nil {
		return
	}
	about := &journal.Record{Pod: podOf(config)}
	about.Attachment.ContainerID = sandbox
	if full := new(noAddress); errors.As(err, &full) {
		about.Attachment.Network = full.network
	}
	h.recorder.Failed("RunPodSandbox", "cri", about, errors.New(status.Convert(err).Message()))
}

// idOf is the id of the sandbox that was made; empty if the answer cannot be decoded.
func idOf(response []byte, made sandboxMade) string {
	if proto.Unmarshal(response, made) != nil {
		return ""
	}
	return made.GetPodSandboxId()
}

func podOf(config *runtimeapi.PodSandboxConfig) journal.Pod {
	meta := config.GetMetadata()
	return journal.Pod{Namespace: meta.GetNamespace(), Name: meta.GetName(), UID: meta.GetUid()}
}

// errNoTime is why a call ends shortly before its caller's deadline.
var errNoTime = errors.New("the caller's deadline is near")

// answerInTime ends a call whose ADD has failed shortly before the caller's
// deadline: the runtime is still undoing the sandbox then, and the caller would
// learn that its time was up and not why. The margin is a fiftieth of the time,
// half a second at most.
func answerInTime(ctx context.Context, flight *engine.Flight) (callCtx context.Context, end func()) {
	callCtx, cancel := context.WithCancelCause(ctx)
	deadline, ok := ctx.Deadline()
	if !ok {
		return callCtx, func() { cancel(nil) }
	}
	left := time.Until(deadline)
	timer := time.AfterFunc(left-min(left/50, 500*time.Millisecond), func() {
		if flight.Cause() != nil {
			cancel(errNoTime)
		}
	})
	return callCtx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// admit refuses a pod that cannot have its network, before anything exists.
func (h *Hooks) admit(ctx context.Context, config *runtimeapi.PodSandboxConfig) (*engine.Flight, error) {
	pod := podOf(config)
	var requests []hostport.Request
	for _, p := range config.GetPortMappings() {
		requests = append(requests, hostport.Request{
			Protocol: p.GetProtocol().String(), HostIP: p.GetHostIp(),
			HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(),
		})
	}
	ports, err := hostport.ParseMappings(requests)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "pod %s: %v", pod, err)
	}
	if err := h.Ready(); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s: network not ready: %v", pod, err)
	}
	if network, err := h.addresses(); err != nil {
		return nil, &noAddress{network, status.Newf(codes.ResourceExhausted, "pod %s: %v", pod, err)}
	}
	flight, err := h.engine.Begin(ctx, pod, ports)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	flight.First = static(config)
	return flight, nil
}

// noAddress is the refusal of a pod whose network has no address left.
type noAddress struct {
	network string
	status  *status.Status
}

// Error is the status as an error.
func (e *noAddress) Error() string { return e.status.Err().Error() }

// GRPCStatus is what the caller gets.
func (e *noAddress) GRPCStatus() *status.Status { return e.status }

// sourceAnnotation is where the kubelet says from where it has a pod.
const sourceAnnotation = "kubernetes.io/config.source"

// static says whether a pod is one of the node's own, from a file or a URL: often what
// the cluster itself needs.
func static(config *runtimeapi.PodSandboxConfig) bool {
	source := config.GetAnnotations()[sourceAnnotation]
	return source != "" && source != "api"
}

// withoutNetwork handles a sandbox that runs without crinet's network. One that
// the runtime networked itself stays, and is reported: the pod works, without
// its hostPorts. One whose network was removed goes, and the caller gets the
// reason: the kubelet makes a new one.
func (h *Hooks) withoutNetwork(ctx context.Context, response []byte, made sandboxMade, failure error) ([]byte, error) {
	if errors.Is(failure, engine.ErrBypassed) {
		h.metrics.bypassed.Inc()
		if h.bypass.begins() {
			h.log.Error("the runtime does not call crinet for its pods; further pods are counted, not logged. "+
				"crinetctl status says what to change", "err", failure)
		}
		return response, nil
	}
	if err := proto.Unmarshal(response, made); err != nil {
		return nil, status.Errorf(codes.Internal, "%v; besides, the runtime's answer cannot be decoded: %v", failure, err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := h.remove(ctx, made.GetPodSandboxId()); err != nil {
		failure = errors.Join(failure, err)
	}
	return nil, status.Error(codes.Internal, failure.Error())
}

// hostNetwork says whether the pod shares the node's network namespace.
func hostNetwork(config *runtimeapi.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// outcomeUnknown says whether an error leaves open what the runtime did.
func outcomeUnknown(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return true
	default:
		return false
	}
}

// once says when a condition begins. The zero value is ready.
type once struct{ holds atomic.Bool }

// begins notes that the condition holds, and says whether it did not before.
func (o *once) begins() bool { return !o.holds.Swap(true) }

// over notes that it does not hold any more.
func (o *once) over() { o.holds.Store(false) }
