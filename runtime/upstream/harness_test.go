package upstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/internal/testkit"
)

// limit bounds every wait for something that must happen.
const limit = 20 * time.Second

// fakeRuntime is a container runtime whose answers a test sets. It counts the
// questions, and what must not come with one.
type fakeRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer

	mu        sync.Mutex
	version   string
	delay     time.Duration // of each Status
	failure   error         // of Status
	hang      chan struct{} // Status waits until it is closed, if there is one
	said      string        // a condition's reason: tells answers apart
	statuses  int           // calls of Status
	versions  int           // calls of Version
	running   int           // calls under way
	most      int           // the largest number of calls under way
	deadlines int           // calls that came with a deadline
	terse     int           // calls of Status without verbose
}

func (r *fakeRuntime) enter(ctx context.Context) {
	r.running++
	r.most = max(r.most, r.running)
	if _, ok := ctx.Deadline(); ok {
		r.deadlines++
	}
}

func (r *fakeRuntime) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
}

func (r *fakeRuntime) Version(ctx context.Context, _ *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	r.mu.Lock()
	r.enter(ctx)
	r.versions++
	version := r.version
	r.mu.Unlock()
	defer r.leave()
	return &runtimeapi.VersionResponse{RuntimeName: "containerd", RuntimeVersion: version}, nil
}

func (r *fakeRuntime) Status(ctx context.Context, req *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	r.mu.Lock()
	r.enter(ctx)
	r.statuses++
	if !req.GetVerbose() {
		r.terse++
	}
	hang, delay := r.hang, r.delay
	r.mu.Unlock()
	defer r.leave()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if delay > 0 {
		time.Sleep(delay) // only in a bubble of synctest
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failure != nil {
		return nil, r.failure
	}
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true, Reason: r.said},
	}}}, nil
}

// set changes what the runtime does.
func (r *fakeRuntime) set(change func(*fakeRuntime)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// counts returns the calls of Status and Version so far.
func (r *fakeRuntime) counts() (statuses, versions int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.statuses, r.versions
}

// checkQuestions fails if the runtime was ever asked two things at once, with a
// deadline, or without verbose.
func (r *fakeRuntime) checkQuestions(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.most != 1 || r.deadlines != 0 || r.terse != 0 {
		t.Errorf("the runtime got up to %d calls at once, %d with a deadline, %d Status without verbose; want 1, 0, 0", r.most, r.deadlines, r.terse)
	}
}

// direct calls a fakeRuntime without gRPC, for tests in a bubble of synctest.
type direct struct {
	grpc.ClientConnInterface
	runtime *fakeRuntime
}

func (d direct) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	switch reply := reply.(type) {
	case *runtimeapi.StatusResponse:
		resp, err := d.runtime.Status(ctx, args.(*runtimeapi.StatusRequest))
		if err == nil {
			reply.Status, reply.Info = resp.Status, resp.Info
		}
		return err
	case *runtimeapi.VersionResponse:
		resp, err := d.runtime.Version(ctx, args.(*runtimeapi.VersionRequest))
		if err == nil {
			reply.RuntimeName, reply.RuntimeVersion = resp.RuntimeName, resp.RuntimeVersion
		}
		return err
	}
	return fmt.Errorf("unexpected call of %s", method)
}

// serve serves a runtime at a unix socket until the returned function is called.
func serve(t *testing.T, path string, r runtimeapi.RuntimeServiceServer) (kill func()) {
	t.Helper()
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, r)
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	kill = sync.OnceFunc(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Errorf("fake runtime: %v", err)
		}
	})
	t.Cleanup(kill)
	return kill
}

// dial connects to a unix socket as runtime/proxy does.
func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 800 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// watch runs a watcher until the test ends, and returns what it logs.
func watch(t *testing.T, conn grpc.ClientConnInterface, endpoint string) (*Watcher, *logBuffer) {
	t.Helper()
	logs := &logBuffer{}
	w := NewWatcher(conn, endpoint, slog.New(slog.NewTextHandler(logs, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w, logs
}

// logBuffer holds log lines.
type logBuffer struct{ testkit.Log }

// count is how many lines contain a text.
func (b *logBuffer) count(text string) int {
	return strings.Count(b.String(), text)
}

// said is the mark of an answer.
func said(a Answer) string {
	conditions := a.Status.GetStatus().GetConditions()
	if len(conditions) == 0 {
		return ""
	}
	return conditions[0].GetReason()
}
