package proxy

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const version = runtimeapi.RuntimeService_Version_FullMethodName

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, want string
		config     Config
	}{
		{"no endpoint", "absolute path", Config{}},
		{"relative path", "absolute path", Config{RuntimeEndpoint: "run/x.sock"}},
		{"relative URL", "absolute path", Config{RuntimeEndpoint: "unix:x.sock"}},
		{"TCP", `"tcp" is not supported`, Config{RuntimeEndpoint: "tcp://127.0.0.1:1"}},
		{"image endpoint", "image service endpoint", Config{RuntimeEndpoint: "/r", ImageEndpoint: "http://x"}},
		{"hook without slash", "hook for", Config{RuntimeEndpoint: "/r", Hooks: map[string]Hook{"Version": identity}}},
		{"nil hook", "hook for", Config{RuntimeEndpoint: "/r", Hooks: map[string]Hook{version: nil}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if p, err := New(tt.config); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, %v, want an error with %q", p, err, tt.want)
			}
		})
	}
}

// TestUpstreamComesAndGoes starts without upstream, then starts, kills and
// restarts it.
func TestUpstreamComesAndGoes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(sockets(t), "u %41")
	run := startProxy(t, Config{RuntimeEndpoint: "unix://" + path, Hooks: map[string]Hook{"/s/Hooked": identity}})
	conn := connect(t, run.path)
	down := func() {
		t.Helper()
		for _, method := range []string{version, "/s/Hooked"} {
			start := time.Now()
			o := do(t.Context(), conn, method, []byte("x"))
			if o.code() != codes.Unavailable || !strings.Contains(o.message(), path) || !strings.Contains(o.message(), "may be down") {
				t.Fatalf("%s while upstream is down: %v", method, o.proto())
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("%s took %v to say that upstream is down", method, d)
			}
		}
	}
	up := func() *fakeUpstream {
		t.Helper()
		u := startUpstream(t, path, map[string]handler{version: echo, "/s/Hang": func(stream grpc.ServerStream) error {
			if err := stream.SendHeader(nil); err != nil {
				return err
			}
			<-stream.Context().Done()
			return nil
		}})
		start := time.Now()
		eventually(t, "calls work again", func() bool { return do(t.Context(), conn, version, []byte("x")).Status == "" })
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("upstream was back for %v before a call worked", d)
		}
		return u
	}
	down()
	for range 3 {
		u := up()
		stream, err := conn.NewStream(t.Context(), bidi, "/s/Hang")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		u.kill()
		if o := rest(stream); o.code() != codes.Unavailable {
			t.Errorf("call under way when upstream died: %v, want Unavailable", o.proto())
		}
		down()
	}
	// A quick restart: down is never seen.
	u := up()
	u.kill()
	startUpstream(t, path, map[string]handler{version: echo})
	eventually(t, "calls work after a restart", func() bool { return do(t.Context(), conn, version, []byte("x")).Status == "" })
	// crinetd makes typed calls of its own.
	own, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	}()
	var answer runtimeapi.VersionResponse
	if err := own.Invoke(t.Context(), version, &runtimeapi.VersionRequest{Version: "v"}, &answer); err != nil || answer.GetVersion() != "v" {
		t.Errorf("typed call: %v, %v", &answer, err)
	}
}

// TestSilentUpstream has a socket that is bound and never answered.
func TestSilentUpstream(t *testing.T) {
	t.Parallel()
	path := filepath.Join(sockets(t), "u")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	conn := connect(t, startProxy(t, Config{RuntimeEndpoint: path}).path)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if o := do(ctx, conn, version, []byte("x")); o.code() != codes.DeadlineExceeded {
		t.Errorf("%v, want DeadlineExceeded", o.proto())
	}
}

// TestStop ends Serve with a call under way that finishes, an event stream
// that is ended at once, and a stream that only the grace ends.
func TestStop(t *testing.T) {
	t.Parallel()
	const events = runtimeapi.RuntimeService_GetContainerEvents_FullMethodName
	begun, release := make(chan struct{}), make(chan struct{})
	endless := func(stream grpc.ServerStream) error {
		begun <- struct{}{}
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	methods := map[string]handler{events: endless, "/s/Endless": endless, version: func(stream grpc.ServerStream) error {
		begun <- struct{}{}
		<-release
		return echo(stream)
	}}
	start := func(grace time.Duration, methods map[string]handler, method string) (*running, chan outcome) {
		p := startPair(t, Config{Grace: grace}, methods)
		got := make(chan outcome, 1)
		go func() { got <- do(context.Background(), p.proxied, method, []byte("x")) }()
		<-begun
		return p.proxy, got
	}
	// Each would wait for ever, or longer than the test's patience.
	run, got := start(time.Hour, methods, events)
	if err := run.stop(); err != nil {
		t.Errorf("Serve with an event stream: %v", err)
	}
	if o := <-got; o.code() != codes.Unavailable || !strings.Contains(o.message(), "stopping") {
		t.Errorf("event stream at the end of Serve: %v", o.proto())
	}

	run, got = start(time.Hour, methods, version)
	stopped := make(chan error, 1)
	go func() { stopped <- run.stop() }()
	<-run.proxy.stopping.Done()
	close(release)
	if o := <-got; o.Status != "" || len(o.Answers) != 1 {
		t.Errorf("call under way at the end of Serve: %v", o.proto())
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve with a call under way: %v", err)
	}

	run, got = start(20*time.Millisecond, methods, "/s/Endless")
	if err := run.stop(); err != nil {
		t.Errorf("Serve with an endless stream: %v", err)
	}
	if o := <-got; o.code() != codes.Unavailable {
		t.Errorf("endless stream after the grace: %v", o.proto())
	}
}

// TestStopWithMuteClient ends Serve with a client that never spoke.
func TestStopWithMuteClient(t *testing.T) {
	t.Parallel()
	run := startProxy(t, Config{RuntimeEndpoint: "/nowhere"})
	mute, err := net.Dial("unix", run.path)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	// It has been accepted once a later connection was.
	do(t.Context(), connect(t, run.path), version)
	start := time.Now()
	if err := run.stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if d := time.Since(start); d > handshakeTimeout+2*time.Second {
		t.Errorf("Serve took %v to end", d)
	}
}

func TestServeFailsWithItsListener(t *testing.T) {
	t.Parallel()
	p, err := New(Config{RuntimeEndpoint: "/nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("unix", filepath.Join(sockets(t), "p"))
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Serve(t.Context(), lis); err == nil || !strings.Contains(err.Error(), lis.Addr().String()) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
