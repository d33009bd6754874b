package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/internal/testkit"
)

func identity(ctx context.Context, request []byte, next Forward) ([]byte, error) {
	return next(ctx, request)
}

// TestUnknownFieldsSurvive sends the hooked messages with fields that no CRI
// has, at both levels of nesting.
func TestUnknownFieldsSurvive(t *testing.T) {
	t.Parallel()
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}}
	tests := map[string]struct{ request, answer proto.Message }{
		runtimeapi.RuntimeService_RunPodSandbox_FullMethodName:       {&runtimeapi.RunPodSandboxRequest{Config: pod}, &runtimeapi.RunPodSandboxResponse{PodSandboxId: "id"}},
		runtimeapi.RuntimeService_StopPodSandbox_FullMethodName:      {&runtimeapi.StopPodSandboxRequest{PodSandboxId: "id"}, &runtimeapi.StopPodSandboxResponse{}},
		runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName:    {&runtimeapi.RemovePodSandboxRequest{PodSandboxId: "id"}, &runtimeapi.RemovePodSandboxResponse{}},
		runtimeapi.RuntimeService_Status_FullMethodName:              {&runtimeapi.StatusRequest{Verbose: true}, &runtimeapi.StatusResponse{Info: map[string]string{"k": "v"}}},
		runtimeapi.RuntimeService_UpdateRuntimeConfig_FullMethodName: {&runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "192.0.2.0/24"}}}, &runtimeapi.UpdateRuntimeConfigResponse{}},
	}
	// Field 19000 as bytes, 536870911 as a varint: the edges of what there is.
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 19000, protowire.BytesType), []byte("from the future"))
	unknown = protowire.AppendVarint(protowire.AppendTag(unknown, protowire.MaxValidNumber, protowire.VarintType), 7)
	encode := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return append(b, unknown...)
	}
	type seen struct{ method, request string }
	requests := make(chan seen, 1)
	methods, hooks := map[string]handler{}, map[string]Hook{}
	for method, tt := range tests {
		answer := encode(tt.answer)
		hooks[method] = identity
		methods[method] = func(stream grpc.ServerStream) error {
			all, err := receiveAll(stream)
			if err != nil {
				return err
			}
			requests <- seen{method, string(all[0])}
			return stream.SendMsg(message(answer))
		}
	}
	p := startPair(t, Config{Hooks: hooks}, methods)
	for method, tt := range tests {
		o := do(t.Context(), p.proxied, method, encode(tt.request))
		if diff := cmp.Diff(outcome{Answers: []string{string(encode(tt.answer))}, Header: o.Header, Trailer: o.Trailer}, o); diff != "" {
			t.Errorf("%s: answer changed:\n%s", method, diff)
		}
		if got, want := <-requests, (seen{method, string(encode(tt.request))}); got != want {
			t.Errorf("request changed:\n got %q\nwant %q", got, want)
		}
	}
}

// TestHookedSameAsDirect compares what callers see with and without a hook.
func TestHookedSameAsDirect(t *testing.T) {
	t.Parallel()
	full := func(err error) handler {
		return func(stream grpc.ServerStream) error {
			if err := stream.SetHeader(metadata.Pairs("h", "1", "h", "2", "h-bin", "\x00\xff")); err != nil {
				return err
			}
			stream.SetTrailer(metadata.Pairs("t", "1", "t-bin", "\xff\x00"))
			if err != nil {
				return err
			}
			return echo(stream)
		}
	}
	methods := map[string]handler{
		"/s/OK":         full(nil),
		"/s/Fails":      full(status.Error(codes.ResourceExhausted, "upstream says no")),
		"/s/FailsPlain": func(grpc.ServerStream) error { return status.Error(codes.NotFound, "trailers only") },
	}
	hooks := map[string]Hook{"/s/Missing": identity}
	for method := range methods {
		hooks[method] = identity
	}
	p := startPair(t, Config{Hooks: hooks}, methods)
	for method := range hooks {
		want := do(t.Context(), p.direct, method, []byte("x"))
		got := do(t.Context(), p.proxied, method, []byte("x"))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: a caller sees a difference (-direct +hooked):\n%s", method, diff)
		}
	}
}

// TestHookTakesOver covers hooks that answer themselves, fail, change what
// they pass on, or ask upstream twice.
func TestHookTakesOver(t *testing.T) {
	t.Parallel()
	echoMetadata := func(stream grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(stream.Context())
		if err := stream.SetHeader(metadata.MD{"saw": md["k"]}); err != nil {
			return err
		}
		return echo(stream)
	}
	hooks := map[string]Hook{
		"/s/Own": func(context.Context, []byte, Forward) ([]byte, error) { return []byte("own"), nil },
		"/s/Nil": func(context.Context, []byte, Forward) ([]byte, error) { return nil, nil },
		"/s/Status": func(context.Context, []byte, Forward) ([]byte, error) {
			return nil, fmt.Errorf("pod n/p: %w", status.Error(codes.FailedPrecondition, "not ready"))
		},
		"/s/Plain": func(context.Context, []byte, Forward) ([]byte, error) { return nil, errors.New("plain") },
		"/s/Context": func(context.Context, []byte, Forward) ([]byte, error) {
			return nil, fmt.Errorf("step: %w", context.DeadlineExceeded)
		},
		"/s/Panic": func(context.Context, []byte, Forward) ([]byte, error) { panic("at the disco") },
		"/s/Change": func(ctx context.Context, request []byte, next Forward) ([]byte, error) {
			answer, err := next(ctx, append([]byte("<"), request...))
			return append(answer, '>'), err
		},
		// Metadata goes with a context that is not derived from the call's.
		"/s/Fresh": func(_ context.Context, request []byte, next Forward) ([]byte, error) {
			return next(context.Background(), request)
		},
		"/s/Twice": func(ctx context.Context, request []byte, next Forward) ([]byte, error) {
			first, err := next(ctx, request)
			if err != nil {
				return nil, err
			}
			second, err := next(ctx, request)
			return append(first, second...), err
		},
	}
	p := startPair(t, Config{Hooks: hooks}, map[string]handler{"/s/Change": echo, "/s/Fresh": echoMetadata, "/s/Twice": echoMetadata})
	tests := []struct {
		method  string
		code    codes.Code
		message string
		answer  string
		saw     []string
	}{
		{method: "/s/Own", answer: "own"},
		{method: "/s/Nil", answer: ""},
		{method: "/s/Status", code: codes.FailedPrecondition, message: "pod n/p"},
		{method: "/s/Plain", code: codes.Unknown, message: "plain"},
		{method: "/s/Context", code: codes.DeadlineExceeded, message: "step"},
		{method: "/s/Panic", code: codes.Internal, message: "at the disco"},
		{method: "/s/Change", answer: "<x>"},
		{method: "/s/Fresh", answer: "x", saw: []string{"v"}},
		{method: "/s/Twice", answer: "xx", saw: []string{"v"}},
	}
	for _, tt := range tests {
		o := do(metadata.AppendToOutgoingContext(t.Context(), "k", "v"), p.proxied, tt.method, []byte("x"))
		if o.code() != tt.code || !strings.Contains(o.message(), tt.message) {
			t.Errorf("%s: %v, want %v with %q", tt.method, o.proto(), tt.code, tt.message)
		}
		if tt.code == codes.OK && !cmp.Equal(o.Answers, []string{tt.answer}) {
			t.Errorf("%s: answers %q, want %q", tt.method, o.Answers, tt.answer)
		}
		if diff := cmp.Diff(tt.saw, o.Header.Get("saw")); diff != "" {
			t.Errorf("%s: upstream's headers: %s", tt.method, diff)
		}
	}
}

func TestHookedCardinality(t *testing.T) {
	t.Parallel()
	hook := func(context.Context, []byte, Forward) ([]byte, error) {
		t.Error("the hook was called")
		return nil, nil
	}
	p := startPair(t, Config{Hooks: map[string]Hook{"/s/Hooked": hook}}, nil)
	for _, requests := range [][][]byte{nil, {[]byte("1"), []byte("2")}} {
		o := do(t.Context(), p.proxied, "/s/Hooked", requests...)
		if o.code() != codes.Internal || !strings.Contains(o.message(), "request message") {
			t.Errorf("%d messages: %v, want Internal", len(requests), o.proto())
		}
	}
	// A caller that sends nothing and hangs is cut off by its own deadline.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stream, err := p.proxied.NewStream(ctx, bidi, "/s/Hooked")
	if err != nil {
		t.Fatal(err)
	}
	if o := rest(stream); o.code() != codes.DeadlineExceeded {
		t.Errorf("silent caller: %v, want DeadlineExceeded", o.proto())
	}
}

// TestOutcomes looks at what is observed and logged.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	type result struct {
		Method string
		Code   codes.Code
	}
	var mu sync.Mutex
	var got []result
	observe := func(method string, code codes.Code, d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if d <= 0 {
			t.Errorf("%s took %v", method, d)
		}
		got = append(got, result{method, code})
	}
	var log testkit.Log
	p := startPair(t, Config{
		Hooks:   map[string]Hook{"/s/Panic": func(context.Context, []byte, Forward) ([]byte, error) { panic("boom") }},
		Observe: observe,
		Log:     slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, map[string]handler{runtimeapi.RuntimeService_Version_FullMethodName: echo})
	calls := []struct {
		method string
		want   result
		log    string
	}{
		{runtimeapi.RuntimeService_Version_FullMethodName, result{runtimeapi.RuntimeService_Version_FullMethodName, codes.OK}, "level=DEBUG msg=\"CRI call\" method=/runtime.v1.RuntimeService/Version code=OK"},
		{runtimeapi.ImageService_PullImage_FullMethodName, result{runtimeapi.ImageService_PullImage_FullMethodName, codes.Unimplemented}, "level=INFO msg=\"CRI call\" method=/runtime.v1.ImageService/PullImage code=Unimplemented"},
		{unknownMethod, result{OtherMethod, codes.Unimplemented}, "method=" + unknownMethod},
		{"/s/Panic", result{"/s/Panic", codes.Internal}, "level=WARN msg=\"CRI call\" method=/s/Panic code=Internal"},
	}
	var want []result
	for i, c := range calls {
		want = append(want, c.want)
		do(t.Context(), p.proxied, c.method, []byte("x"))
		testkit.Eventually(t, "the call was observed", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(got) > i
		})
		testkit.Eventually(t, "logged: "+c.log, func() bool { return strings.Contains(log.String(), c.log) })
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "hook_test.go") {
		t.Errorf("the panic was logged without its place:\n%s", log.String())
	}
}

// TestTraceContextPasses: a caller's trace context reaches upstream as it came, by a hook
// too, unless the hook puts another in its place. All other metadata passes.
func TestTraceContextPasses(t *testing.T) {
	t.Parallel()
	const ours = "00-0af7651916cd43dd8448eb211c80319c-00000000000000aa-01"
	theirs := metadata.MD{"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "tracestate": {"a=1,b=2"}, "other": {"x", "y"}}
	seen := make(chan metadata.MD, 1)
	look := func(stream grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(stream.Context())
		got := metadata.MD{}
		for key := range theirs {
			got[key] = md[key]
		}
		seen <- got
		return echo(stream)
	}
	replace := func(ctx context.Context, request []byte, next Forward) ([]byte, error) {
		return next(WithMetadata(ctx, metadata.MD{"traceparent": {ours}, "tracestate": nil}), request)
	}
	p := startPair(t, Config{Hooks: map[string]Hook{"/x/Hooked": identity, "/x/Replaced": replace}},
		map[string]handler{"/x/Piped": look, "/x/Hooked": look, "/x/Replaced": look})
	for method, want := range map[string]metadata.MD{
		"/x/Piped": theirs, "/x/Hooked": theirs,
		"/x/Replaced": {"traceparent": {ours}, "tracestate": nil, "other": {"x", "y"}},
	} {
		if o := do(metadata.NewOutgoingContext(t.Context(), theirs), p.proxied, method, []byte("request")); o.code() != codes.OK {
			t.Fatalf("%s: %+v", method, o)
		}
		if diff := cmp.Diff(want, <-seen); diff != "" {
			t.Errorf("%s: upstream sees other metadata:\n%s", method, diff)
		}
	}
}

// Where no hook replaces metadata nothing is allocated for that.
func TestMetadataCostsNothing(t *testing.T) {
	ctx, md := t.Context(), metadata.MD{"a": {"b"}}
	if n := testing.AllocsPerRun(100, func() { md = replaced(ctx, md) }); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}
