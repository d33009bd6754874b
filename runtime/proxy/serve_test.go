package proxy

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/internal/testkit"
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
		testkit.Eventually(t, "calls work again", func() bool { return do(t.Context(), conn, version, []byte("x")).Status == "" })
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
	testkit.Eventually(t, "calls work after a restart", func() bool { return do(t.Context(), conn, version, []byte("x")).Status == "" })
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

// TestStop ends Serve with calls of each class under way: what passes and what is
// drained may finish, each in its time, and a stream that never ends is ended at
// once.
func TestStop(t *testing.T) {
	t.Parallel()
	const (
		events = runtimeapi.RuntimeService_GetContainerEvents_FullMethodName
		run    = runtimeapi.RuntimeService_RunPodSandbox_FullMethodName
	)
	begun, release := make(chan struct{}), make(chan struct{})
	hang := func(stream grpc.ServerStream) error {
		begun <- struct{}{}
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	finish := func(stream grpc.ServerStream) error {
		begun <- struct{}{}
		<-release
		return echo(stream)
	}
	tests := []struct {
		name   string
		config Config
		method string
		do     handler
		finish bool
	}{
		{"event stream", Config{Grace: time.Hour, PassGrace: time.Hour}, events, hang, false},
		{"passing call", Config{Grace: time.Hour, PassGrace: time.Hour}, version, finish, true},
		{"passing call that goes on", Config{Grace: time.Hour, PassGrace: 20 * time.Millisecond}, version, hang, false},
		{"drained call", Config{Grace: time.Hour, PassGrace: 20 * time.Millisecond, Drain: []string{run}}, run, finish, true},
		{"drained call that goes on", Config{Grace: 20 * time.Millisecond, Drain: []string{run}}, run, hang, false},
		{"unknown stream", Config{Grace: 20 * time.Millisecond}, "/s/Endless", hang, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := startPair(t, tt.config, map[string]handler{tt.method: tt.do})
			stream, err := p.proxied.NewStream(context.Background(), bidi, tt.method)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(stream.SendMsg(message([]byte("x"))), stream.CloseSend()); err != nil {
				t.Fatal(err)
			}
			<-begun
			stopped := make(chan error, 1)
			go func() { stopped <- p.proxy.stop() }()
			if tt.finish {
				release <- struct{}{}
			}
			o := rest(stream)
			if tt.finish && (o.Status != "" || len(o.Answers) != 1) {
				t.Errorf("the call was not finished: %v", o.proto())
			}
			if !tt.finish && (o.code() != codes.Unavailable || !strings.Contains(o.message(), "stopping")) {
				t.Errorf("the call ended with %v, want Unavailable", o.proto())
			}
			if err := <-stopped; err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	}
}

// TestSlowCallsSilenceNobody: while a drained call that began before the end goes
// on, others are served.
func TestSlowCallsSilenceNobody(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	p := startPair(t, Config{Grace: time.Hour, Drain: []string{"/s/Slow"}}, map[string]handler{version: echo, "/s/Slow": func(stream grpc.ServerStream) error {
		close(begun)
		<-release
		return echo(stream)
	}})
	slow, stopped := make(chan outcome, 1), make(chan error, 1)
	go func() { slow <- do(context.Background(), p.proxied, "/s/Slow", []byte("x")) }()
	<-begun
	go func() { stopped <- p.proxy.stop() }()
	for range 100 {
		if o := do(t.Context(), connect(t, p.proxy.path), version, []byte("x")); o.Status != "" {
			t.Fatalf("a call by a new connection: %v", o.proto())
		}
	}
	close(release)
	if o := <-slow; o.Status != "" {
		t.Errorf("the slow call: %v", o.proto())
	}
	if err := <-stopped; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestHandover has servers follow each other on one listening socket, as behind
// systemd, under callers with old and new connections: no call fails.
func TestHandover(t *testing.T) {
	t.Parallel()
	up := startUpstream(t, filepath.Join(sockets(t), "u"), map[string]handler{version: echo, "/s/Hooked": echo})
	lis, err := net.Listen("unix", filepath.Join(sockets(t), "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	path := lis.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for i := range 8 {
		conn := connect(t, path)
		callers.Go(func() {
			for ctx.Err() == nil {
				used := conn
				if i == 0 {
					used = connect(t, path)
				}
				for _, method := range []string{version, "/s/Hooked"} {
					if o := do(context.Background(), used, method, []byte("x")); o.Status != "" {
						t.Errorf("%s: %v", method, o.proto())
					}
				}
			}
		})
	}
	for range 50 {
		generation(t, lis.(*net.UnixListener), Config{RuntimeEndpoint: up.path, Hooks: map[string]Hook{"/s/Hooked": identity}})
	}
	last := startOn(t, lis.(*net.UnixListener), Config{RuntimeEndpoint: up.path, Hooks: map[string]Hook{"/s/Hooked": identity}})
	cancel()
	callers.Wait()
	last()
}

// generation serves on a copy of the listening socket for a moment.
func generation(t *testing.T, lis *net.UnixListener, c Config) {
	stop := startOn(t, lis, c)
	time.Sleep(5 * time.Millisecond) // a restart may come at any time
	stop()
}

// startOn serves on a copy of the listening socket until stop is called.
func startOn(t *testing.T, lis *net.UnixListener, c Config) (stop func()) {
	t.Helper()
	file, err := lis.File()
	if err != nil {
		t.Fatal(err)
	}
	copied, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, copied) }()
	return func() {
		cancel()
		if err := errors.Join(<-served, p.Close()); err != nil {
			t.Error(err)
		}
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
