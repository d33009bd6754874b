package tracing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
)

const (
	runPod  = runtimeapi.RuntimeService_RunPodSandbox_FullMethodName
	stopPod = runtimeapi.RuntimeService_StopPodSandbox_FullMethodName
	theirs  = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)

func discard() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// noEnvironment takes all of OpenTelemetry's variables away.
func noEnvironment(t testing.TB) {
	t.Helper()
	for _, name := range []string{
		"OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER",
		"OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_TRACES_SAMPLER",
	} {
		t.Setenv(name, "")
	}
}

// TestWanted: the standard variables decide, and what crinetd cannot do is told.
func TestWanted(t *testing.T) {
	const endpoint, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	for _, tt := range []struct {
		env    []string
		wanted bool
		fault  string
	}{
		{nil, false, ""},
		{[]string{"OTEL_TRACES_EXPORTER", "otlp"}, false, ""},
		{[]string{endpoint, "http://192.0.2.1:4317"}, true, ""},
		{[]string{traces, "http://192.0.2.1:4317"}, true, ""},
		{[]string{endpoint, "http://192.0.2.1:4317", "OTEL_SDK_DISABLED", "true"}, false, ""},
		{[]string{endpoint, "http://192.0.2.1:4317", "OTEL_TRACES_EXPORTER", "none"}, false, ""},
		{[]string{endpoint, "http://192.0.2.1:4317", "OTEL_TRACES_EXPORTER", "zipkin"}, false, "zipkin"},
		{[]string{endpoint, "http://192.0.2.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"}, false, "http/protobuf"},
		{[]string{endpoint, "http://192.0.2.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"}, true, ""},
	} {
		t.Run(strings.Join(tt.env, " "), func(t *testing.T) {
			noEnvironment(t)
			for i := 0; i < len(tt.env); i += 2 {
				t.Setenv(tt.env[i], tt.env[i+1])
			}
			wanted, err := Wanted()
			if wanted != tt.wanted || (err != nil) != (tt.fault != "") || err != nil && !strings.Contains(err.Error(), tt.fault) {
				t.Errorf("Wanted says %v, %v", wanted, err)
			}
			var log strings.Builder
			tracer := New(t.Context(), "v", slog.New(slog.NewTextHandler(&log, nil)))
			if (tracer != nil) != tt.wanted || tt.fault != "" && !strings.Contains(log.String(), tt.fault) {
				t.Errorf("New returns %v and logs %q", tracer, log.String())
			}
			if err := tracer.Close(t.Context(), time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// engineOf is the handler of the runtime's calls, which follows steps as the engine does.
type engineOf struct {
	cnihook.Handler
	attach func(context.Context, *engine.Call) error
}

func (e *engineOf) Attach(ctx context.Context, call *engine.Call) (json.RawMessage, error) {
	return nil, e.attach(ctx, call)
}
func (e *engineOf) Detach(ctx context.Context, call *engine.Call) error { return e.attach(ctx, call) }

// TestNothingWithoutEnvironment: without an endpoint nothing is wrapped, and nothing is
// allocated.
func TestNothingWithoutEnvironment(t *testing.T) {
	noEnvironment(t)
	tracer := New(t.Context(), "v", discard())
	hooks := map[string]proxy.Hook{runPod: nil}
	if got := tracer.Hooks(hooks); len(got) != 1 || got[runPod] != nil {
		t.Error("hooks are wrapped")
	}
	h := new(engineOf)
	if tracer.Handler(h) != cnihook.Handler(h) {
		t.Error("the handler is wrapped")
	}
	ctx, run := t.Context(), cni.Run{Type: "bridge", Command: "ADD", Stdin: []byte(`{}`)}
	if n := testing.AllocsPerRun(100, func() {
		ctx, _, ended := tracer.Observe(ctx, run)
		ended(run)
		if ctx == nil {
			t.Error("no context")
		}
	}); n != 0 {
		t.Errorf("%v allocations a run of a plugin", n)
	}
}

// BenchmarkUntraced is what a run of a plugin costs where nobody traces.
func BenchmarkUntraced(b *testing.B) {
	noEnvironment(b)
	tracer := New(b.Context(), "v", discard())
	ctx, run := b.Context(), cni.Run{Type: "bridge", Command: "ADD"}
	b.ReportAllocs()
	for b.Loop() {
		_, _, ended := tracer.Observe(ctx, run)
		ended(run)
	}
}

// rig is a Tracer whose spans are kept.
type rig struct {
	*Tracer
	t     *testing.T
	spans *tracetest.SpanRecorder
}

func newRig(t *testing.T) *rig {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	return &rig{newTracer(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))), t, recorder}
}

// tree returns the ended spans, each with its parent's name, its error if it has one,
// in the order of their ends.
func (r *rig) tree() []string {
	r.t.Helper()
	names := make(map[string]string)
	for _, s := range r.spans.Ended() {
		names[s.SpanContext().SpanID().String()] = s.Name()
	}
	var all []string
	for _, s := range r.spans.Ended() {
		parent := names[s.Parent().SpanID().String()]
		if parent == "" && s.Parent().IsValid() {
			parent = s.Parent().SpanID().String()
		}
		text := strings.TrimSpace(parent + " > " + s.Name())
		if s.Status().Code == otelcodes.Error {
			text += ": " + s.Status().Description
		}
		all = append(all, text)
	}
	return all
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var (
	pod     = journal.Pod{Namespace: "ns", Name: "p", UID: "u"}
	request = &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "ns", Name: "p", Uid: "u"},
	}}
)

// TestTree makes and ends a sandbox as the engine does; the runtime's calls come back on
// a context of their own.
func TestTree(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]error{"works": nil, "fails": errors.New("no addresses \xff")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var follow engine.Follower
			var environment []string
			h := r.Handler(&engineOf{attach: func(ctx context.Context, call *engine.Call) error {
				if call.NetNS != "" {
					var ended func(error)
					ctx, ended = follow(ctx, engine.StepPlugin)
					defer ended(fail)
				}
				_, env, ended := r.Observe(ctx, cni.Run{Type: "bridge", Command: "X", Stdin: []byte(`{"name": "n"}`), Env: []string{"CNI_CONTAINERID=id"}})
				environment = env
				ended(cni.Run{Err: fail})
				return fail
			}})
			hooks := r.Hooks(map[string]proxy.Hook{
				runPod: func(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
					follow = r.Follow(ctx)
					_, ended := follow(ctx, engine.StepCreate)
					ended(nil)
					return next(ctx, request)
				},
				stopPod: func(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
					return next(ctx, request)
				},
			})
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", theirs, "tracestate", "a=1"))
			_, err := hooks[runPod](ctx, encode(t, request), func(context.Context, []byte) ([]byte, error) {
				_, err := h.Attach(context.Background(), &engine.Call{ContainerID: "id", Pod: pod, NetNS: "/ns"})
				if err != nil {
					return nil, status.Error(codes.Unknown, err.Error())
				}
				return encode(t, &runtimeapi.RunPodSandboxResponse{PodSandboxId: "id"}), nil
			})
			if (err != nil) != (fail != nil) {
				t.Errorf("RunPodSandbox = %v", err)
			}
			plugin := r.spans.Ended()[1].SpanContext()
			if want := []string{"TRACEPARENT=00-" + plugin.TraceID().String() + "-" + plugin.SpanID().String() + "-01", "TRACESTATE=a=1"}; !slices.Equal(environment, want) {
				t.Errorf("the plugin has %q, want %q", environment, want)
			}
			_, err = hooks[stopPod](ctx, encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "id"}), func(context.Context, []byte) ([]byte, error) {
				return nil, h.Detach(context.Background(), &engine.Call{ContainerID: "id", Pod: pod})
			})
			if (err != nil) != (fail != nil) {
				t.Errorf("StopPodSandbox = %v", err)
			}
			failed, run := "", ""
			if fail != nil {
				failed, run = ": no addresses ", ": rpc error: code = Unknown desc = no addresses "
			}
			const caller = "b7ad6b7169203331"
			want := []string{
				"RunPodSandbox > create", "plugin > bridge X" + failed, "RunPodSandbox > plugin" + failed, caller + " > RunPodSandbox" + run,
				"CNI DEL > bridge X" + failed, "StopPodSandbox > CNI DEL" + failed, caller + " > StopPodSandbox" + failed,
			}
			if diff := cmp.Diff(want, r.tree()); diff != "" {
				t.Error(diff)
			}
			if len(r.making)+len(r.ending) != 0 {
				t.Errorf("calls are under way: %v, %v", r.making, r.ending)
			}
		})
	}
}

// TestDirectCalls: what nobody asked crinetd for is a trace of its own, or goes on with
// the one that the runtime brings.
func TestDirectCalls(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.Handler(&engineOf{attach: func(ctx context.Context, _ *engine.Call) error {
		_, ended := r.Follow(ctx)(ctx, engine.StepPlugin)
		ended(nil)
		return nil
	}})
	call := &engine.Call{ContainerID: "id", Pod: pod}
	for _, ctx := range []context.Context{t.Context(), r.Remote(t.Context(), theirs, ""), r.Remote(t.Context(), "00-junk\x00", "\n")} {
		if _, err := h.Attach(ctx, call); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"CNI ADD > plugin", "> CNI ADD", "CNI ADD > plugin", "b7ad6b7169203331 > CNI ADD", "CNI ADD > plugin", "> CNI ADD"}
	if diff := cmp.Diff(want, r.tree()); diff != "" {
		t.Error(diff)
	}
	// A run that belongs to no trace, such as STATUS, makes none.
	ctx, env, ended := r.Observe(t.Context(), cni.Run{Type: "bridge", Command: "STATUS"})
	ended(cni.Run{})
	if ctx != t.Context() || env != nil || len(r.spans.Ended()) != 6 {
		t.Errorf("STATUS is traced: %q, %v", env, r.tree())
	}
}

// TestUnsampled: a trace that its caller does not sample has no spans of crinetd, and
// nothing minds; the runtime and plugins hear that it is not sampled.
func TestUnsampled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	unsampled := strings.TrimSuffix(theirs, "01") + "00"
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", unsampled))
	hooks := r.Hooks(map[string]proxy.Hook{stopPod: func(ctx context.Context, request []byte, next proxy.Forward) ([]byte, error) {
		_, env, ended := r.Observe(ctx, cni.Run{Type: "bridge"})
		ended(cni.Run{Err: errors.New("no")})
		if len(env) != 1 || !strings.HasSuffix(env[0], "-00") {
			t.Errorf("the plugin has %q", env)
		}
		return next(ctx, request)
	}})
	_, err := hooks[stopPod](ctx, encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "id"}), func(context.Context, []byte) ([]byte, error) { return nil, nil })
	if err != nil || len(r.spans.Ended()) != 0 {
		t.Errorf("%v, %v", err, r.tree())
	}
}

// brokenExporter fails until it is mended.
type brokenExporter struct{ err error }

func (e *brokenExporter) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return e.err }
func (e *brokenExporter) Shutdown(context.Context) error                             { return nil }

// TestExporterFails: it is told once, and once when it works again.
func TestExporterFails(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	broken := &brokenExporter{fmt.Errorf("refused")}
	e := &exporting{SpanExporter: broken, log: slog.New(slog.NewTextHandler(&log, nil))}
	for i := range 10 {
		if i == 5 {
			broken.err = nil
		}
		if err := e.ExportSpans(t.Context(), nil); err != nil {
			t.Errorf("the SDK would log %v as well", err)
		}
	}
	for text, want := range map[string]int{"cannot be sent": 1, "sent again": 1} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("%q is logged %d times:\n%s", text, got, log.String())
		}
	}
}

// TestCloseDoesNotWait: a receiver that is not there holds the end up no longer than it
// may.
func TestCloseDoesNotWait(t *testing.T) {
	noEnvironment(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	tracer := New(t.Context(), "v", discard())
	_, span := tracer.tracer.Start(t.Context(), "x")
	span.End()
	start := time.Now()
	if err := tracer.Close(t.Context(), 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("Close took %v", took)
	}
}
