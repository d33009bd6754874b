package tracing

import (
	"context"
	"encoding/json"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/engine"
)

// Follow makes spans of the steps of a sandbox in the making, below that of the call
// whose context ctx is (engine.Config.Follow).
func (t *Tracer) Follow(ctx context.Context) engine.Follower {
	parent := trace.SpanFromContext(ctx)
	return func(ctx context.Context, step engine.Step) (context.Context, func(error)) {
		// Only these two are within the runtime's ADD.
		if step != engine.StepNetNS && step != engine.StepPlugin || !continues(ctx, parent) {
			ctx = trace.ContextWithSpan(ctx, parent)
		}
		ctx, span := t.start(ctx, string(step), trace.SpanKindInternal)
		return ctx, func(err error) { end(span, err) }
	}
}

// continues says whether the call of ctx is part of a span's trace already: a runtime
// that traces itself, such as containerd 2.4, passes the trace on, and its own
// span is nearer. One that has not sampled the trace would lose what is below.
func continues(ctx context.Context, span trace.Span) bool {
	own, want := trace.SpanContextFromContext(ctx), span.SpanContext()
	return own.IsValid() && own.TraceID() == want.TraceID() && own.IsSampled() == want.IsSampled()
}

// Observe makes a span of each run of a plugin that belongs to a trace, and tells the
// plugin (cni.Observe).
func (t *Tracer) Observe(ctx context.Context, run cni.Run) (context.Context, []string, func(cni.Run)) {
	if t == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, nil, ignore
	}
	how := "exec"
	if run.Builtin {
		how = "builtin"
	}
	ctx, span := t.start(ctx, run.Type+" "+run.Command, trace.SpanKindInternal,
		attribute.String(pluginType, run.Type), attribute.String(pluginVerb, run.Command), attribute.String(pluginHow, how))
	if span.IsRecording() {
		var conf struct {
			Name string `json:"name"`
		}
		_ = json.Unmarshal(run.Stdin, &conf) // without a name the span lacks it
		span.SetAttributes(attribute.String(networkName, conf.Name), attribute.String(sandboxID, valueOf(run.Env, "CNI_CONTAINERID")))
	}
	return ctx, t.environment(ctx), func(run cni.Run) { end(span, run.Err) }
}

func ignore(cni.Run) {}

// environment is the trace context of ctx as environment variables.
func (t *Tracer) environment(ctx context.Context) []string {
	values := make(propagation.MapCarrier, 2)
	t.propagator.Inject(ctx, values)
	var env []string
	for _, key := range []string{parentKey, stateKey} {
		if value := values[key]; value != "" {
			env = append(env, strings.ToUpper(key)+"="+value)
		}
	}
	return env
}

func valueOf(env []string, name string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}

// Remote puts the trace context that the runtime's call brought into ctx
// (cnihook.Config.Trace).
func (t *Tracer) Remote(ctx context.Context, traceparent, tracestate string) context.Context {
	return t.propagator.Extract(ctx, propagation.MapCarrier{parentKey: traceparent, stateKey: tracestate})
}

// Handler returns the handler of the runtime's CNI calls, which joins them to the CRI
// calls that they are for. ADD and DEL that nobody asked crinetd for are spans of
// their own.
func (t *Tracer) Handler(h cnihook.Handler) cnihook.Handler {
	if t == nil {
		return h
	}
	return &handler{h, t}
}

type handler struct {
	cnihook.Handler
	tracer *Tracer
}

// Attach is cnihook.Attacher's.
func (h *handler) Attach(ctx context.Context, call *engine.Call) (result json.RawMessage, err error) {
	h.tracer.mu.Lock()
	asked := h.tracer.making[call.Pod.UID] > 0
	h.tracer.mu.Unlock()
	if asked {
		return h.Handler.Attach(ctx, call) // the flight knows the span
	}
	ctx, span := h.tracer.start(ctx, "CNI ADD", trace.SpanKindServer, describe(call)...)
	defer func() { end(span, err) }()
	return h.Handler.Attach(ctx, call)
}

// Detach is cnihook.Attacher's.
func (h *handler) Detach(ctx context.Context, call *engine.Call) (err error) {
	h.tracer.mu.Lock()
	asked := h.tracer.ending[call.ContainerID]
	h.tracer.mu.Unlock()
	if asked != nil && !continues(ctx, asked.span) {
		ctx = trace.ContextWithSpan(ctx, asked.span)
	}
	ctx, span := h.tracer.start(ctx, "CNI DEL", trace.SpanKindServer, describe(call)...)
	defer func() { end(span, err) }()
	return h.Handler.Detach(ctx, call)
}

func describe(call *engine.Call) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String(podNamespace, call.Pod.Namespace), attribute.String(podName, call.Pod.Name),
		attribute.String(podUID, call.Pod.UID), attribute.String(sandboxID, call.ContainerID),
	}
}
