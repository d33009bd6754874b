package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/crinet-project/crinet/internal/testkit"
)

const (
	unknownMethod  = "/runtime.v1.RuntimeService/NotYetInvented"
	unknownService = "/runtime.v9.FutureService/Do"
)

// TestSameAsDirect makes each call directly and through the proxy: a caller
// must not be able to tell them apart.
func TestSameAsDirect(t *testing.T) {
	t.Parallel()
	sendThree := func(stream grpc.ServerStream) error {
		for i := range 3 {
			if err := stream.SendMsg(message(fmt.Appendf(nil, "answer %d", i))); err != nil {
				return err
			}
		}
		return nil
	}
	withMetadata := func(stream grpc.ServerStream) error {
		in, _ := metadata.FromIncomingContext(stream.Context())
		if err := stream.SetHeader(metadata.MD{"h": in["both"], "raw-bin": {"\x00\xff\x01", "two"}}); err != nil {
			return err
		}
		stream.SetTrailer(metadata.MD{"t": in["both"], "t-bin": {"\xfe\x00"}})
		return echo(stream)
	}
	methods := map[string]handler{
		unknownMethod:  withMetadata,
		unknownService: echo,
		"/s/None":      func(grpc.ServerStream) error { return nil },
		"/s/Three":     sendThree,
		"/s/ThreeThenFail": func(stream grpc.ServerStream) error {
			stream.SetTrailer(metadata.Pairs("t", "late"))
			return errors.Join(sendThree(stream), status.Error(codes.DataLoss, "after three"))
		},
		"/s/FailAtOnce": func(stream grpc.ServerStream) error {
			stream.SetTrailer(metadata.Pairs("t", "at once"))
			return status.Error(codes.FailedPrecondition, "before all")
		},
		"/s/HeaderThenFail": func(stream grpc.ServerStream) error {
			if err := stream.SendHeader(metadata.Pairs("h", "early")); err != nil {
				return err
			}
			return status.Error(codes.Aborted, "after headers: ünïcode\nand a % sign")
		},
		"/s/Empty": func(stream grpc.ServerStream) error { return stream.SendMsg(message(nil)) },
	}
	p := startPair(t, Config{}, methods)
	tests := []struct {
		name, method string
		requests     []string
		answers      int
	}{
		{"unknown method", unknownMethod, []string{"request"}, 1},
		{"unknown service", unknownService, []string{"request"}, 1},
		{"method that upstream lacks", "/runtime.v1.ImageService/Missing", []string{"request"}, 0},
		{"client stream", unknownService, []string{"a", "b", "c"}, 1},
		{"client stream of nothing", unknownService, nil, 1},
		{"server stream", "/s/Three", []string{"go"}, 3},
		{"server stream that fails", "/s/ThreeThenFail", []string{"go"}, 3},
		{"no answer", "/s/None", []string{"go"}, 0},
		{"empty messages", "/s/Empty", []string{""}, 1},
		{"error at once", "/s/FailAtOnce", []string{"go"}, 0},
		{"error after headers", "/s/HeaderThenFail", []string{"go"}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			ctx = metadata.AppendToOutgoingContext(ctx, "both", "1", "both", "2", "key-bin", "\x00\x80\xff")
			var requests [][]byte
			for _, r := range tt.requests {
				requests = append(requests, []byte(r))
			}
			want := do(ctx, p.direct, tt.method, requests...)
			got := do(ctx, p.proxied, tt.method, requests...)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("a caller sees a difference (-direct +proxied):\n%s", diff)
			}
			if len(want.Answers) != tt.answers {
				t.Errorf("%d answers came directly, want %d", len(want.Answers), tt.answers)
			}
		})
	}
}

func TestEveryCodeWithDetails(t *testing.T) {
	t.Parallel()
	p := startPair(t, Config{}, map[string]handler{
		"/s/Fail": func(stream grpc.ServerStream) error {
			all, err := receiveAll(stream)
			if err != nil {
				return err
			}
			st, err := status.New(codes.Code(all[0][0]), "the message").WithDetails(wrapperspb.String("first"), wrapperspb.Int64(2))
			if err != nil {
				return err
			}
			return st.Err()
		},
	})
	for code := codes.Canceled; code <= codes.Unauthenticated+1; code++ { // one more than gRPC knows
		want := do(t.Context(), p.direct, "/s/Fail", []byte{byte(code)})
		got := do(t.Context(), p.proxied, "/s/Fail", []byte{byte(code)})
		if want.code() != code || len(want.proto().GetDetails()) != 2 {
			t.Fatalf("code %v came directly as %v", code, want.proto())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("code %v differs (-direct +proxied):\n%s", code, diff)
		}
	}
}

// TestMetadataUpstream looks at what upstream sees of the caller's metadata.
func TestMetadataUpstream(t *testing.T) {
	t.Parallel()
	seen := make(chan metadata.MD, 2)
	p := startPair(t, Config{}, map[string]handler{"/s/See": func(stream grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(stream.Context())
		seen <- md
		return nil
	}})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "k", "1", "k", "2", "raw-bin", "\x00\xff", "traceparent", "00-x")
	do(ctx, p.direct, "/s/See")
	want := <-seen
	do(ctx, p.proxied, "/s/See")
	got := <-seen
	for _, md := range []metadata.MD{want, got} {
		delete(md, ":authority") // of the hop
		delete(md, "user-agent")
	}
	want["content-type"] = []string{"application/grpc+proto"} // the same by definition
	got["content-type"] = []string{"application/grpc+proto"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("upstream sees a difference (-direct +proxied):\n%s", diff)
	}
	if want.Get("raw-bin")[0] != "\x00\xff" {
		t.Errorf("the test sent no binary metadata: %v", want)
	}
}

func TestContentSubtype(t *testing.T) {
	t.Parallel()
	seen := make(chan []string, 1)
	p := startPair(t, Config{}, map[string]handler{"/s/See": func(stream grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(stream.Context())
		seen <- md.Get("content-type")
		return nil
	}})
	var header metadata.MD
	codec := grpc.ForceCodecV2(rawCodec{})
	var _ encoding.CodecV2 = rawCodec{}
	stream, err := p.proxied.NewStream(t.Context(), bidi, "/s/See", codec, grpc.CallContentSubtype("json"), grpc.Header(&header))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if o := rest(stream); o.Status != "" {
		t.Fatalf("call failed: %v", o.proto())
	}
	if diff := cmp.Diff([]string{"application/grpc+json"}, <-seen); diff != "" {
		t.Errorf("content type upstream: %s", diff)
	}
}

func TestBidirectional(t *testing.T) {
	t.Parallel()
	p := startPair(t, Config{}, map[string]handler{"/s/Chat": func(stream grpc.ServerStream) error {
		if err := stream.SendHeader(metadata.Pairs("greeting", "first")); err != nil {
			return err
		}
		for {
			var f frame
			err := stream.RecvMsg(&f)
			if errors.Is(err, io.EOF) {
				// Upstream goes on after the caller's half-close.
				return stream.SendMsg(message([]byte("after half-close")))
			}
			if err != nil {
				return err
			}
			if err := stream.SendMsg(&f); err != nil {
				return err
			}
		}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := p.proxied.NewStream(ctx, bidi, "/s/Chat")
	if err != nil {
		t.Fatal(err)
	}
	// The headers come before the caller said anything.
	if header, err := stream.Header(); err != nil || header.Get("greeting") == nil {
		t.Fatalf("early headers: %v, %v", header, err)
	}
	for i := range 50 {
		want := fmt.Sprint("message ", i)
		if err := stream.SendMsg(message([]byte(want))); err != nil {
			t.Fatal(err)
		}
		var f frame
		if err := stream.RecvMsg(&f); err != nil {
			t.Fatal(err)
		}
		if got := string(f.take()); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if o := rest(stream); o.Status != "" || !cmp.Equal(o.Answers, []string{"after half-close"}) {
		t.Errorf("after the half-close: %q, %v", o.Answers, o.proto())
	}
}

func TestLargeMessages(t *testing.T) {
	t.Parallel()
	p := startPair(t, Config{Hooks: map[string]Hook{"/s/Hooked": identity}}, map[string]handler{"/s/Echo": echo, "/s/Hooked": echo})
	large := make([]byte, 15<<20)
	for i := range large {
		large[i] = byte(i * 2654435761 >> 13)
	}
	for _, method := range []string{"/s/Echo", "/s/Hooked"} {
		o := do(t.Context(), p.proxied, method, large)
		if o.Status != "" {
			t.Fatalf("%s: %v", method, o.proto())
		}
		if len(o.Answers) != 1 || o.Answers[0] != string(large) {
			t.Errorf("%s: the 15 MiB came back changed", method)
		}
	}
}

// TestTooLarge goes over the bound in both directions.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	p := startPair(t, Config{}, map[string]handler{
		"/s/Echo":  echo,
		"/s/Large": func(stream grpc.ServerStream) error { return stream.SendMsg(message(make([]byte, MaxMessageSize+1))) },
	})
	if o := do(t.Context(), p.proxied, "/s/Echo", make([]byte, MaxMessageSize+1)); o.code() != codes.ResourceExhausted {
		t.Errorf("request: %v, want ResourceExhausted", o.proto())
	}
	if o := do(t.Context(), p.proxied, "/s/Large"); o.code() != codes.ResourceExhausted {
		t.Errorf("answer: %v, want ResourceExhausted", o.proto())
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	seen := make(chan time.Time, 1)
	wait := func(stream grpc.ServerStream) error {
		deadline, _ := stream.Context().Deadline()
		seen <- deadline
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	p := startPair(t, Config{Hooks: map[string]Hook{"/s/Hooked": identity}}, map[string]handler{"/s/Wait": wait, "/s/Hooked": wait})
	for _, method := range []string{"/s/Wait", "/s/Hooked"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		want, _ := ctx.Deadline()
		o := do(ctx, p.proxied, method, []byte("x"))
		cancel()
		if o.code() != codes.DeadlineExceeded {
			t.Errorf("%s: %v, want DeadlineExceeded", method, o.proto())
		}
		if got := <-seen; got.Before(want.Add(-50*time.Millisecond)) || got.After(want.Add(150*time.Millisecond)) {
			t.Errorf("%s: upstream's deadline is %v off", method, got.Sub(want))
		}
	}
}

func TestCancellation(t *testing.T) {
	t.Parallel()
	begun, ended := make(chan struct{}), make(chan error)
	wait := func(stream grpc.ServerStream) error {
		begun <- struct{}{}
		<-stream.Context().Done()
		ended <- stream.Context().Err()
		return nil
	}
	p := startPair(t, Config{Hooks: map[string]Hook{"/s/Hooked": identity}}, map[string]handler{"/s/Wait": wait, "/s/Hooked": wait})
	for _, method := range []string{"/s/Wait", "/s/Hooked"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		got := make(chan outcome, 1)
		go func() { got <- do(ctx, p.proxied, method, []byte("x")) }()
		<-begun
		cancel()
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: upstream's context ended with %v", method, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: upstream never saw the cancellation", method)
		}
		if o := <-got; o.code() != codes.Canceled {
			t.Errorf("%s: %v, want Canceled", method, o.proto())
		}
	}
}

// TestEarlyEnd has upstream end calls whose callers keep sending, and looks
// for goroutines that wait for those callers.
func TestEarlyEnd(t *testing.T) {
	p := startPair(t, Config{}, map[string]handler{
		"/s/Refuse": func(grpc.ServerStream) error { return status.Error(codes.PermissionDenied, "no") },
	})
	do(t.Context(), p.proxied, "/s/Refuse")
	before := runtime.NumGoroutine()
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		stream, err := p.proxied.NewStream(ctx, bidi, "/s/Refuse")
		if err != nil {
			t.Fatal(err)
		}
		if o := rest(stream); o.code() != codes.PermissionDenied { // without half-close
			t.Fatalf("got %v", o.proto())
		}
		cancel()
	}
	testkit.Eventually(t, "goroutines as before the calls", func() bool { return runtime.NumGoroutine() <= before })
}

func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	const calls = 64
	var together sync.WaitGroup
	together.Add(calls)
	p := startPair(t, Config{}, map[string]handler{"/s/Meet": func(stream grpc.ServerStream) error {
		together.Done()
		together.Wait() // ends only if all calls are under way at once
		return echo(stream)
	}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			want := bytes.Repeat(fmt.Appendf(nil, "%d,", i), 1000)
			if o := do(ctx, p.proxied, "/s/Meet", want); len(o.Answers) != 1 || o.Answers[0] != string(want) {
				t.Errorf("call %d: %d answers, status %v", i, len(o.Answers), o.proto())
			}
		})
	}
	wg.Wait()
}

func TestImageEndpoint(t *testing.T) {
	t.Parallel()
	answer := func(name string) handler {
		return func(stream grpc.ServerStream) error { return stream.SendMsg(message([]byte(name))) }
	}
	routes := []struct{ method, want string }{
		{"/runtime.v1.ImageService/PullImage", "image"},
		{"/runtime.v1.ImageService/NotYetInvented", "image"},
		{"/runtime.v1alpha2.ImageService/PullImage", "image"},
		{"/runtime.v1.RuntimeService/Version", "runtime"},
		{"/runtime.v1.OtherService/ImageService", "runtime"},
		{"/other.ImageService/X", "runtime"},
	}
	runtimeMethods, imageMethods := map[string]handler{}, map[string]handler{}
	for _, r := range routes {
		runtimeMethods[r.method], imageMethods[r.method] = answer("runtime"), answer("image")
	}
	dir := sockets(t)
	r := startUpstream(t, filepath.Join(dir, "r"), runtimeMethods)
	i := startUpstream(t, filepath.Join(dir, "i"), imageMethods)
	conn := connect(t, startProxy(t, Config{RuntimeEndpoint: r.path, ImageEndpoint: "unix:" + i.path}).path)
	for _, route := range routes {
		if o := do(t.Context(), conn, route.method); strings.Join(o.Answers, "") != route.want {
			t.Errorf("%s went to %q, want %q (%v)", route.method, o.Answers, route.want, o.proto())
		}
	}
}
