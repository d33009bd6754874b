package tracing

import (
	"context"
	"maps"
	"path"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/proxy"
)

// Attributes of spans. Those of Kubernetes are OpenTelemetry's own.
const (
	podNamespace = "k8s.namespace.name"
	podName      = "k8s.pod.name"
	podUID       = "k8s.pod.uid"
	sandboxID    = "crinet.sandbox.id"
	networkName  = "crinet.network.name"
	pluginType   = "crinet.plugin.type"
	pluginHow    = "crinet.plugin.how"
	pluginVerb   = "crinet.plugin.command"
)

// call is what a CRI call says of a sandbox.
type call interface {
	proto.Message
}

// maker is a request that has a sandbox made.
type maker interface {
	GetConfig() *runtimeapi.PodSandboxConfig
}

// about names a sandbox.
type about interface{ GetPodSandboxId() string }

// Hooks returns the hooks, with spans around those that make and end sandboxes.
func (t *Tracer) Hooks(hooks map[string]proxy.Hook) map[string]proxy.Hook {
	if t == nil {
		return hooks
	}
	all := maps.Clone(hooks)
	for method, messages := range map[string]func() (request, response call){
		runtimeapi.RuntimeService_RunPodSandbox_FullMethodName: func() (call, call) {
			return new(runtimeapi.RunPodSandboxRequest), new(runtimeapi.RunPodSandboxResponse)
		},
		runtimeapi.RuntimeService_RestorePod_FullMethodName: func() (call, call) {
			return new(runtimeapi.RestorePodRequest), new(runtimeapi.RestorePodResponse)
		},
		runtimeapi.RuntimeService_StopPodSandbox_FullMethodName: func() (call, call) {
			return new(runtimeapi.StopPodSandboxRequest), nil
		},
		runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName: func() (call, call) {
			return new(runtimeapi.RemovePodSandboxRequest), nil
		},
	} {
		if hook := hooks[method]; hook != nil {
			all[method] = t.hook(path.Base(method), hook, messages)
		}
	}
	return all
}

// hook puts a span around a hook.
func (t *Tracer) hook(name string, hook proxy.Hook, messages func() (request, response call)) proxy.Hook {
	return func(ctx context.Context, request []byte, next proxy.Forward) (answer []byte, err error) {
		md, _ := metadata.FromIncomingContext(ctx)
		ctx, span := t.start(t.propagator.Extract(ctx, carrier(md)), name, trace.SpanKindServer)
		asked, answered := messages()
		if proto.Unmarshal(request, asked) == nil {
			defer t.underWay(asked, span)()
		}
		forward := func(ctx context.Context, request []byte) ([]byte, error) {
			return next(proxy.WithMetadata(ctx, t.header(ctx)), request)
		}
		defer func() {
			span.SetAttributes(attribute.String("rpc.grpc.status_code", status.Code(err).String()))
			end(span, err)
		}()
		answer, err = hook(ctx, request, forward)
		if made, ok := answered.(about); ok && err == nil && span.IsRecording() && proto.Unmarshal(answer, answered) == nil {
			span.SetAttributes(attribute.String(sandboxID, made.GetPodSandboxId()))
		}
		return answer, err
	}
}

// underWay notes whose sandbox a call is about, until over is called: the runtime's
// ADD and DEL come back meanwhile.
func (t *Tracer) underWay(asked call, span trace.Span) (over func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch asked := asked.(type) {
	case maker:
		meta := asked.GetConfig().GetMetadata()
		span.SetAttributes(attribute.String(podNamespace, meta.GetNamespace()), attribute.String(podName, meta.GetName()),
			attribute.String(podUID, meta.GetUid()))
		uid := meta.GetUid()
		t.making[uid]++
		return func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.making[uid]--; t.making[uid] == 0 {
				delete(t.making, uid)
			}
		}
	case about:
		id := asked.GetPodSandboxId()
		span.SetAttributes(attribute.String(sandboxID, id))
		ours := &ending{span}
		t.ending[id] = ours
		return func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.ending[id] == ours {
				delete(t.ending, id)
			}
		}
	default:
		return func() {}
	}
}

// header is the trace context of ctx as metadata.
func (t *Tracer) header(ctx context.Context) metadata.MD {
	md := make(metadata.MD, 2)
	t.propagator.Inject(ctx, carrier(md))
	if md.Get(stateKey) == nil {
		md[stateKey] = nil // the caller's does not pass beside our traceparent
	}
	return md
}

// The keys of W3C's trace context.
const (
	parentKey = "traceparent"
	stateKey  = "tracestate"
)

// carrier reads and writes a trace context in metadata.
type carrier metadata.MD

// Get is propagation.TextMapCarrier's.
func (c carrier) Get(key string) string {
	if values := metadata.MD(c).Get(key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Set is propagation.TextMapCarrier's.
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

// Keys is propagation.TextMapCarrier's.
func (c carrier) Keys() []string { return []string{parentKey, stateKey} }
