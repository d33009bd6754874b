package cnihook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
)

// TestCalls runs the real plugin against the server, each command once.
func TestCalls(t *testing.T) {
	t.Parallel()
	calls := make(chan any, 1)
	s := start(t, Config{Handler: &double{
		t:     t,
		del:   func(_ context.Context, call *engine.Call) error { calls <- call; return nil },
		check: func(_ context.Context, key journal.Key) error { calls <- key; return nil },
		gc:    func(_ context.Context, valid []types.GCAttachment) error { calls <- valid; return nil },
		add: func(_ context.Context, call *engine.Call) ([]byte, error) {
			calls <- call
			return []byte(`{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.2/24"}]}`), nil
		},
		status: func() error { calls <- nil; return nil },
	}})
	more := `,"runtimeConfig":{"portMappings":[{"HostPort":1}]},"cni.dev/valid-attachments":[{"containerID":"abc123","ifname":"eth0"}]`
	full := &engine.Call{
		ContainerID: "abc123", NetNS: "/run/netns/x", IfName: "eth0",
		Args:          [][2]string{{"K8S_POD_UID", "uid-1"}, {"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_INFRA_CONTAINER_ID", "abc123"}},
		RuntimeConfig: json.RawMessage(`{"portMappings":[{"HostPort":1}]}`),
		Pod:           journal.Pod{Namespace: "ns", Name: "web-0", UID: "uid-1"},
	}
	tests := []struct {
		command, version, stdout string
		want                     any
	}{
		{wire.CommandAdd, "1.1.0", `{"cniVersion":"1.1.0","ips":[{"address":"192.0.2.2/24"}]}`, full},
		{wire.CommandAdd, "0.3.1", `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"192.0.2.2/24"}],"dns":{}}`, full},
		{wire.CommandDel, "1.0.0", "", full},
		{wire.CommandCheck, "0.4.0", "", journal.Key{ContainerID: "abc123", IfName: "eth0"}},
		{wire.CommandGC, "1.1.0", "", []types.GCAttachment{{ContainerID: "abc123", IfName: "eth0"}}},
		{wire.CommandStatus, "1.1.0", "", nil},
	}
	for _, tt := range tests {
		stdout := succeeding(t, environment(tt.command), s.config(tt.version, more))
		if stdout != tt.stdout {
			t.Errorf("%s %s printed %s, want %s", tt.command, tt.version, stdout, tt.stdout)
		}
		if diff := cmp.Diff(tt.want, <-calls); diff != "" {
			t.Errorf("%s %s: %s", tt.command, tt.version, diff)
		}
	}
	testkit.Eventually(t, "an ADD in the log", func() bool {
		return strings.Contains(s.log.String(), `level=DEBUG msg="CNI call" command=ADD pod=ns/web-0 sandbox=abc123`)
	})
}

func TestHandlerErrors(t *testing.T) {
	t.Parallel()
	results := map[string]func() ([]byte, error){
		"plain":   func() ([]byte, error) { return nil, errors.New("plain") },
		"cni":     func() ([]byte, error) { return nil, fmt.Errorf("network n: %w", types.NewError(11, "busy", "d")) },
		"panic":   func() ([]byte, error) { panic("at the disco") },
		"nothing": func() ([]byte, error) { return nil, nil },
		"garbage": func() ([]byte, error) { return []byte("garbage"), nil },
		"large": func() ([]byte, error) {
			return []byte(`{"cniVersion":"1.0.0","x":"` + strings.Repeat("x", wire.MaxResult) + `"}`), nil
		},
	}
	s := start(t, Config{Handler: &double{
		t:      t,
		add:    func(_ context.Context, call *engine.Call) ([]byte, error) { return results[call.ContainerID]() },
		status: func() error { return types.NewError(51, "no addresses", "") },
	}})
	for id, want := range map[string]cniError{
		"plain":   {Code: 999, Msg: "pod ns/web-0: plain"},
		"cni":     {Code: 11, Msg: "pod ns/web-0: network n: busy", Details: "d"},
		"panic":   {Code: 999, Msg: "pod ns/web-0: crinetd failed in ADD: at the disco; its log has the details"},
		"nothing": {Code: 999, Msg: "pod ns/web-0: the network gave no result"},
		"garbage": {Code: 999, Msg: "pod ns/web-0: result of the network: decoding version from network config: invalid character 'g' looking for beginning of value"},
		"large":   {Code: 999, Msg: "pod ns/web-0: the result has 4194333 bytes, 4194304 is the limit"},
	} {
		want.CNIVersion = "1.0.0"
		got := failing(t, environment("ADD", "CNI_CONTAINERID="+id), s.config("1.0.0", ""))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", id, diff)
		}
	}
	got := failing(t, environment("STATUS", "CNI_ARGS="), s.config("1.1.0", ""))
	if diff := cmp.Diff(cniError{CNIVersion: "1.1.0", Code: 51, Msg: "no addresses"}, got); diff != "" {
		t.Error(diff)
	}
	if log := s.log.String(); !strings.Contains(log, "level=ERROR") || !strings.Contains(log, "server_test.go") {
		t.Errorf("the panic was logged without its place:\n%s", log)
	}
}

// TestRequestsRefused sends what the plugin would not.
func TestRequestsRefused(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Handler: &double{t: t}})
	good := wire.Request{Command: "ADD", ContainerID: "abc", NetNS: "/n", IfName: "eth0", Args: podArgs, Stdin: []byte(s.config("1.0.0", ""))}
	tests := []struct {
		name   string
		change func(*wire.Request)
		code   uint
		want   string
	}{
		{"id as path", func(r *wire.Request) { r.ContainerID = "../../etc" }, 4, "CNI_CONTAINERID"},
		{"ifname as path", func(r *wire.Request) { r.IfName = "../x" }, 4, "CNI_IFNAME"},
		{"unknown command", func(r *wire.Request) { r.Command = "EAT" }, 4, "EAT"},
		{"VERSION is the plugin's", func(r *wire.Request) { r.Command = "VERSION" }, 4, "VERSION"},
		{"malformed args", func(r *wire.Request) { r.Args += ";X" }, 4, "pod ns/web-0: CNI_ARGS"},
		{"path too long", func(r *wire.Request) { r.Path = strings.Repeat("/", maxPathBytes+1) }, 4, "CNI_PATH"},
		{"not JSON", func(r *wire.Request) { r.Stdin = []byte("x") }, 6, "not a JSON object"},
		{"version", func(r *wire.Request) { r.Stdin = []byte(s.config("0.2.0", "")) }, 1, "0.2.0"},
	}
	for _, tt := range tests {
		request := good
		tt.change(&request)
		reply := s.exchange(t, &request)
		if reply.Error == nil || reply.Error.Code != tt.code || !strings.Contains(reply.Error.Msg, tt.want) {
			t.Errorf("%s: %+v, want code %d with %q", tt.name, reply.Error, tt.code, tt.want)
		}
	}
}

// TestBadClients has clients that are slow, mute, of another release, or not
// clients at all; meanwhile others are served.
func TestBadClients(t *testing.T) {
	t.Parallel()
	s := start(t, Config{RequestTimeout: 100 * time.Millisecond, Handler: &double{t: t, del: func(context.Context, *engine.Call) error { return nil }}})
	for name, send := range map[string]string{
		"mute":          "",
		"slow":          "\x00\x00\x00\x10{",
		"garbage":       "GET / HTTP/1.1\r\n\r\n",
		"other release": "\x00\x00\x00\x0d{\"version\":2}",
	} {
		conn := s.connect(t)
		if _, err := conn.Write([]byte(send)); err != nil {
			t.Fatal(err)
		}
		reply, err := wire.ReadReply(conn)
		if err != nil || reply.Error == nil || reply.Error.Code != wire.CodeDecode {
			t.Errorf("%s: %+v, %v, want code 6", name, reply, err)
		}
	}
	before := s.log.String()
	if err := s.connect(t).Close(); err != nil { // somebody looks whether we live
		t.Fatal(err)
	}
	succeeding(t, environment("DEL"), s.config("1.0.0", ""))
	if after := strings.TrimPrefix(s.log.String(), before); strings.Contains(after, "refused") {
		t.Errorf("a look was logged:\n%s", after)
	}
}

// TestKilledPlugin ends the plugin as a runtime does at its deadline.
func TestKilledPlugin(t *testing.T) {
	t.Parallel()
	begun, ended := make(chan struct{}), make(chan error, 1)
	s := start(t, Config{Handler: &double{t: t, del: func(ctx context.Context, _ *engine.Call) error {
		close(begun)
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return ctx.Err()
	}}})
	cmd, _ := shim(t, environment("DEL"), s.config("1.0.0", ""))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	select {
	case err := <-ended:
		if !errors.Is(err, ErrCallerGone) {
			t.Errorf("the call ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the call was not cancelled")
	}
	testkit.Eventually(t, "a warning in the log", func() bool {
		return strings.Contains(s.log.String(), "level=WARN msg=\"CNI call\" command=DEL") && strings.Contains(s.log.String(), "gave up waiting")
	})
}

// TestConcurrency has more clients than connections: all are served, never
// too many at once.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	const limit, clients = 4, 32
	var mu sync.Mutex
	var now, most int
	full := make(chan struct{})
	s := start(t, Config{Connections: limit, Handler: &double{t: t, del: func(context.Context, *engine.Call) error {
		mu.Lock()
		now++
		if most = max(most, now); now == limit {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		mu.Unlock()
		<-full // the first ones wait for each other
		mu.Lock()
		now--
		mu.Unlock()
		return nil
	}}})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			request := &wire.Request{Command: "DEL", ContainerID: fmt.Sprint(i), IfName: "eth0", Stdin: []byte(s.config("1.0.0", ""))}
			conn, err := net.Dial("unix", s.socket)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if err := wire.WriteRequest(conn, request); err != nil {
				t.Error(err)
				return
			}
			if reply, err := wire.ReadReply(conn); err != nil || reply.Error != nil {
				t.Errorf("%+v, %v", reply, err)
			}
		})
	}
	wg.Wait()
	if most != limit {
		t.Errorf("%d calls at once, want %d", most, limit)
	}
}

// TestStop ends Serve with a call that finishes within the grace, a client
// that has not sent its request, and later with a call that does not finish.
func TestStop(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	s := start(t, Config{Grace: grace(time.Hour), RequestTimeout: time.Hour, Handler: &double{t: t, del: func(context.Context, *engine.Call) error {
		close(begun)
		<-release
		return nil
	}}})
	mute := s.connect(t)
	cmd, out := shim(t, environment("DEL"), s.config("1.0.0", ""))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-begun
	s.cancel()
	if reply, err := wire.ReadReply(mute); err != nil || reply.Error == nil || reply.Error.Code != wire.CodeTryAgainLater {
		t.Errorf("a client that said nothing yet: %+v, %v, want code 11", reply, err)
	}
	testkit.Eventually(t, "the socket is gone", func() bool { _, err := os.Lstat(s.socket); return err != nil })
	if got := failing(t, environment("ADD"), s.config("1.0.0", "")); got.Code != wire.CodeTryAgainLater {
		t.Errorf("a new call: %+v", got)
	}
	close(release)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the call under way: %v with %s", err, out)
	}
	if err := s.stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}

	begun = make(chan struct{})
	s = start(t, Config{Grace: grace(20 * time.Millisecond), Handler: &double{t: t, del: func(ctx context.Context, _ *engine.Call) error {
		close(begun)
		<-ctx.Done()
		return context.Cause(ctx)
	}}})
	cmd, out = shim(t, environment("DEL"), s.config("1.0.0", ""))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-begun
	if err := s.stop(); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(out.String(), ErrStopping.Error()) {
		t.Errorf("the call that outlived the grace: %v with %s", err, out)
	}
}

func grace(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestHandover has servers follow each other on one listening socket, as behind
// systemd, while plugins are run without a pause: no call is refused.
func TestHandover(t *testing.T) {
	t.Parallel()
	handler := &double{t: t, del: func(context.Context, *engine.Call) error { return nil }}
	s := start(t, Config{Handler: handler})
	if err := s.stop(); err != nil { // it made the directory
		t.Fatal(err)
	}
	lis, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				cmd, out := shim(t, environment("DEL"), s.config("1.0.0", ""))
				if err := cmd.Run(); err != nil {
					t.Errorf("DEL: %v with %s", err, out)
				}
			}
		})
	}
	for range 30 {
		end := serveOn(t, lis.(*net.UnixListener), handler)
		time.Sleep(5 * time.Millisecond) // a restart may come at any time
		end()
	}
	end := serveOn(t, lis.(*net.UnixListener), handler)
	cancel()
	callers.Wait()
	end()
}

// serveOn serves on a copy of the listening socket until end is called.
func serveOn(t *testing.T, lis *net.UnixListener, handler Handler) (end func()) {
	t.Helper()
	file, err := lis.File()
	if err != nil {
		t.Fatal(err)
	}
	copied, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	server, err := New(Config{Handler: handler})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, copied) }()
	return func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {Handler: &double{}, Connections: -1}, {Handler: &double{}, RequestTimeout: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) gave no error", c)
		}
	}
}

// flaky fails to accept, then goes on.
type flaky struct {
	net.Listener
	once sync.Once
}

func (f *flaky) Accept() (conn net.Conn, err error) {
	f.once.Do(func() { err = errors.New("too many open files") })
	if err != nil {
		return nil, err
	}
	return f.Listener.Accept()
}

func TestAcceptFails(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Handler: &double{t: t, del: func(context.Context, *engine.Call) error { return nil }}})
	server, err := New(Config{Handler: &double{t: t, del: func(context.Context, *engine.Call) error { return nil }}})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("unix", s.socket+"2")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, &flaky{Listener: lis}) }()
	other := &serving{socket: s.socket + "2"}
	succeeding(t, environment("DEL"), other.config("1.0.0", ""))
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := server.Serve(t.Context(), lis); err == nil || !strings.Contains(err.Error(), lis.Addr().String()) {
		t.Errorf("Serve on a closed listener: %v", err)
	}
}

// A plugin of the selected network that calls crinet again gets an answer at
// once (review rows A3 and A3c): the handler is not asked.
func TestNestedCalls(t *testing.T) {
	t.Parallel()
	s := start(t, Config{Handler: &double{t: t}, Mark: wire.InsideVariable + "=1:2"})
	inside := wire.InsideVariable + "=1:2"
	for _, command := range []string{"ADD", "CHECK"} {
		got := failing(t, environment(command, inside), s.config("1.0.0", ""))
		if got.Code != wire.CodeInvalidConfig || !strings.Contains(got.Msg, "pod ns/web-0: "+command) || !strings.Contains(got.Msg, "delegates to crinet") {
			t.Errorf("nested %s: %+v", command, got)
		}
	}
	for _, command := range []string{"DEL", "STATUS"} {
		if out := succeeding(t, environment(command, inside), s.config("1.1.0", "")); out != "" {
			t.Errorf("nested %s printed %q", command, out)
		}
	}
}

// The mark of another crinetd's plugins is no mark of this one's.
func TestCallsInsideAnotherCrinetd(t *testing.T) {
	t.Parallel()
	deleted := false
	s := start(t, Config{Mark: wire.InsideVariable + "=1:2", Handler: &double{t: t, del: func(context.Context, *engine.Call) error { deleted = true; return nil }}})
	succeeding(t, environment("DEL", wire.InsideVariable+"=1:3"), s.config("1.0.0", ""))
	if !deleted {
		t.Error("DEL did not come to the handler")
	}
}

// The trace context that the real plugin sends along reaches the handler by its context;
// calls without one do not ask for it.
func TestTraceContextReachesTheHandler(t *testing.T) {
	t.Parallel()
	type key struct{}
	var got []any
	s := start(t, Config{
		Handler: &double{t: t, del: func(ctx context.Context, _ *engine.Call) error {
			got = append(got, ctx.Value(key{}))
			return nil
		}},
		Trace: func(ctx context.Context, traceparent, tracestate string) context.Context {
			return context.WithValue(ctx, key{}, traceparent+" "+tracestate)
		},
	})
	for _, more := range [][]string{{}, {"TRACEPARENT=00-a-b-01", "TRACESTATE=c=1"}, {"TRACEPARENT=" + strings.Repeat("x", 1<<16)}} {
		succeeding(t, environment("DEL", more...), s.config("1.0.0", ""))
	}
	if diff := cmp.Diff([]any{nil, "00-a-b-01 c=1", nil}, got); diff != "" {
		t.Error(diff)
	}
}
