package cnihook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// build compiles the plugin, so that the tests speak to the server through it.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cnihook-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "crinet")
	cmd := exec.Command("go", "build", "-o", path, "github.com/crinet-project/crinet/cmd/crinet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, errors.Join(err, errors.New(string(out)))
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, _ := build(); path != "" {
		if err := os.RemoveAll(strings.TrimSuffix(path, "/crinet")); err != nil && code == 0 {
			code = 1
		}
	}
	os.Exit(code)
}

// double is a Handler of functions; a nil one fails the test.
type double struct {
	t      testing.TB
	add    func(ctx context.Context, call *engine.Call) ([]byte, error)
	del    func(ctx context.Context, call *engine.Call) error
	check  func(ctx context.Context, key journal.Key) error
	status func() error
	gc     func(ctx context.Context, valid []types.GCAttachment) error
}

func (d *double) Attach(ctx context.Context, call *engine.Call) (json.RawMessage, error) {
	if d.add == nil {
		return nil, d.unexpected("ADD", call)
	}
	return d.add(ctx, call)
}

func (d *double) Detach(ctx context.Context, call *engine.Call) error {
	if d.del == nil {
		return d.unexpected("DEL", call)
	}
	return d.del(ctx, call)
}

func (d *double) Check(ctx context.Context, key journal.Key) error {
	if d.check == nil {
		return d.unexpected("CHECK", key)
	}
	return d.check(ctx, key)
}

func (d *double) Collect(ctx context.Context, valid []types.GCAttachment) error {
	if d.gc == nil {
		return d.unexpected("GC", valid)
	}
	return d.gc(ctx, valid)
}

func (d *double) Status() error {
	if d.status == nil {
		return d.unexpected("STATUS", nil)
	}
	return d.status()
}

func (d *double) unexpected(command string, about any) error {
	d.t.Errorf("unexpected %s %+v", command, about)
	return errors.New("unexpected")
}

// serving is a server on a socket.
type serving struct {
	socket string
	log    *testkit.Log
	cancel context.CancelFunc
	stop   func() error // ends Serve and returns what it returned
}

func start(t testing.TB, c Config) *serving {
	t.Helper()
	s := &serving{log: &testkit.Log{}}
	c.Log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	server, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	s.socket = filepath.Join(dir, "cni.sock")
	lis, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, lis) }()
	s.cancel = cancel
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-served
	})
	t.Cleanup(func() {
		if err := errors.Join(s.stop(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// config is a network configuration for the server; more is JSON to add.
func (s *serving) config(version, more string) string {
	return `{"cniVersion":"` + version + `","name":"crinet","type":"crinet","socket":"` + s.socket + `"` + more + `}`
}

// podArgs is CNI_ARGS as containerd writes it.
const podArgs = "K8S_POD_UID=uid-1;IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc123"

func environment(command string, more ...string) []string {
	return append([]string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=abc123", "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0",
		"CNI_ARGS=" + podArgs, "CNI_PATH=/opt/cni/bin",
	}, more...)
}

// shim is the plugin's command, ready to start.
func shim(t testing.TB, env []string, stdin string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path)
	cmd.Env, cmd.Stdin = env, strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout = &out
	return cmd, &out
}

// cniError is what the plugin prints when it fails.
type cniError struct {
	CNIVersion, Msg, Details string
	Code                     uint
}

// failing runs the plugin, which must fail, and returns its error.
func failing(t testing.TB, env []string, stdin string) cniError {
	t.Helper()
	cmd, out := shim(t, env, stdin)
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("plugin: %v with %q, want exit code 1", err, out)
	}
	var got cniError
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Errorf("plugin printed %q: %v", out, err)
	}
	return got
}

// succeeding runs the plugin, which must succeed, and returns what it prints.
func succeeding(t testing.TB, env []string, stdin string) string {
	t.Helper()
	cmd, out := shim(t, env, stdin)
	if err := cmd.Run(); err != nil {
		t.Errorf("plugin: %v with %q", err, out)
	}
	return out.String()
}

// exchange speaks to the server without the plugin, which checks too much.
func (s *serving) exchange(t testing.TB, request *wire.Request) *wire.Reply {
	t.Helper()
	conn := s.connect(t)
	if err := wire.WriteRequest(conn, request); err != nil {
		t.Fatal(err)
	}
	reply, err := wire.ReadReply(conn)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func (s *serving) connect(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some tests close it themselves
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}
