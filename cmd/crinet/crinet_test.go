package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/wire"
)

// build compiles the plugin as it is released.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "crinet-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "crinet")
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, ".")
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

func plugin(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// daemon listens on a socket and gives each connection to serve.
func daemon(t testing.TB, serve func(conn net.Conn)) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "cni.sock")
	lis, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			serve(conn)
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		if err := errors.Join(lis.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return socket
}

func config(socket, version string) string {
	b, err := json.Marshal(map[string]string{"cniVersion": version, "name": "crinet", "type": "crinet", "socket": socket})
	if err != nil {
		panic(err) // strings alone
	}
	return string(b)
}

func environment(command string, more ...string) []string {
	return append([]string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=abc", "CNI_NETNS=/run/netns/x", "CNI_IFNAME=eth0",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=p", "CNI_PATH=/opt/cni/bin",
	}, more...)
}

// execute runs the built plugin.
func execute(t testing.TB, env []string, stdin string) (stdout string, exitCode int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), plugin(t))
	cmd.Env = env
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if errOut.Len() != 0 {
		t.Errorf("standard error: %s", errOut.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func TestStandardLibraryOnly(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "os") {
		t.Fatalf("go list -deps says %q", out)
	}
	const ours = "github.com/crinet-project/crinet/"
	for _, dep := range deps {
		if strings.Contains(dep, ".") && dep != ours+"cmd/crinet" && dep != ours+"cni/wire" && !strings.HasPrefix(dep, "vendor/") || dep == "net" || dep == "regexp" {
			t.Errorf("the plugin depends on %s", dep)
		}
	}
}

// TestExchange runs the real plugin against a daemon: what goes there, what
// comes back.
func TestExchange(t *testing.T) {
	t.Parallel()
	tests := []struct {
		command string
		reply   wire.Reply
		stdout  string
		code    int
	}{
		{wire.CommandAdd, wire.Reply{Result: []byte(`{"cniVersion":"1.1.0","ips":[]}`)}, `{"cniVersion":"1.1.0","ips":[]}`, 0},
		{wire.CommandAdd, wire.Reply{Result: bytes.Repeat([]byte(" "), wire.MaxResult)}, strings.Repeat(" ", wire.MaxResult), 0},
		{wire.CommandDel, wire.Reply{}, "", 0},
		{wire.CommandCheck, wire.Reply{}, "", 0},
		{wire.CommandGC, wire.Reply{}, "", 0},
		{wire.CommandStatus, wire.Reply{}, "", 0},
		{wire.CommandStatus, wire.Reply{Error: &wire.Error{Code: 51, Msg: "limited"}}, `{"cniVersion":"1.1.0","code":51,"msg":"limited"}`, 1},
		{wire.CommandDel, wire.Reply{Error: &wire.Error{Code: 999, Msg: "pod n/p: m", Details: "d"}}, `{"cniVersion":"1.1.0","code":999,"msg":"pod n/p: m","details":"d"}`, 1},
	}
	for _, tt := range tests {
		got := make(chan *wire.Request, 1)
		socket := daemon(t, func(conn net.Conn) {
			request, err := wire.ReadRequest(conn)
			if err != nil {
				t.Error(err)
			}
			got <- request
			if err := wire.WriteReply(conn, &tt.reply); err != nil {
				t.Error(err)
			}
		})
		stdin := config(socket, "1.1.0")
		stdout, code := execute(t, environment(tt.command), stdin)
		if stdout != tt.stdout || code != tt.code {
			t.Errorf("%s: exit code %d with %.300q, want %d with %.300q", tt.command, code, stdout, tt.code, tt.stdout)
		}
		want := &wire.Request{
			Version: wire.Version, Command: tt.command, ContainerID: "abc", NetNS: "/run/netns/x", IfName: "eth0",
			Args: "IgnoreUnknown=1;K8S_POD_NAME=p", Path: "/opt/cni/bin", Stdin: []byte(stdin),
		}
		if diff := cmp.Diff(want, <-got); diff != "" {
			t.Errorf("%s: request: %s", tt.command, diff)
		}
	}
}

// TestTraceContext: the plugin sends the trace context of its environment along, if
// there is one.
func TestTraceContext(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, want := range [][2]string{{}, {parent, ""}, {parent, "a=1"}} {
		got := make(chan *wire.Request, 1)
		socket := daemon(t, func(conn net.Conn) {
			request, err := wire.ReadRequest(conn)
			if err != nil {
				t.Error(err)
			}
			got <- request
			if err := wire.WriteReply(conn, &wire.Reply{}); err != nil {
				t.Error(err)
			}
		})
		env := environment(wire.CommandDel)
		if want[0] != "" {
			env = append(env, "TRACEPARENT="+want[0], "TRACESTATE="+want[1])
		}
		if stdout, code := execute(t, env, config(socket, "1.1.0")); code != 0 {
			t.Fatalf("exit code %d with %q", code, stdout)
		}
		if request := <-got; [2]string{request.TraceParent, request.TraceState} != want {
			t.Errorf("sent %q, %q; want %q", request.TraceParent, request.TraceState, want)
		}
	}
}

// TestErrors has all that goes wrong before or without a daemon's answer.
func TestErrors(t *testing.T) {
	t.Parallel()
	away := filepath.Join(t.TempDir(), "no.sock")
	hangUp := daemon(t, func(net.Conn) {})
	diesMidway := daemon(t, func(conn net.Conn) { _, _ = wire.ReadRequest(conn) })
	garbage := daemon(t, func(conn net.Conn) { _, _ = conn.Write([]byte("HTTP/1.1 400")) })
	refuses := daemon(t, func(conn net.Conn) {
		_ = wire.WriteReply(conn, &wire.Reply{Error: &wire.Error{Code: 11, Msg: "stopping"}})
	})
	large := strings.TrimSuffix(config(refuses, "1.0.0"), "}") + `,"x":"` + strings.Repeat("x", wire.MaxStdin-500) + `"}`
	tests := []struct {
		name  string
		env   []string
		stdin string
		code  int
		want  string
	}{
		{"ADD, daemon away", environment("ADD"), config(away, "1.0.0"), 11, away},
		{"DEL, daemon away", environment("DEL"), config(away, "1.0.0"), 11, away},
		{"CHECK, daemon away", environment("CHECK"), config(away, "1.0.0"), 11, away},
		{"GC, daemon away", environment("GC"), config(away, "1.1.0"), 11, away},
		{"STATUS, daemon away", environment("STATUS"), config(away, "1.1.0"), 50, away},
		{"socket path too long", environment("ADD"), config("/"+strings.Repeat("x", 200), "1.0.0"), 11, "connecting to"},
		{"daemon hangs up", environment("ADD"), config(hangUp, "1.0.0"), 11, hangUp},
		{"daemon dies midway", environment("ADD"), config(diesMidway, "1.0.0"), 11, "EOF"},
		{"daemon talks garbage", environment("ADD"), config(garbage, "1.0.0"), 11, "announces"},
		{"daemon refuses unheard", environment("ADD"), large, 11, "stopping"},
		{"no environment", nil, config(away, "1.0.0"), 4, "CNI_COMMAND"},
		{"bad environment", []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=../x"}, config(away, "1.0.0"), 4, "CNI_NETNS is missing"},
		{"no stdin", environment("ADD"), "", 6, "not a JSON object"},
		{"stdin is not JSON", environment("DEL"), "hello", 6, "not a JSON object"},
		{"stdin too large", environment("ADD"), strings.Repeat(" ", wire.MaxStdin+1), 7, "more than 1048576 bytes"},
		{"no version", environment("ADD"), "{}", 1, "cniVersion"},
		{"STATUS before its time", environment("STATUS"), config(away, "1.0.0"), 1, "STATUS"},
		{"VERSION with garbage", []string{"CNI_COMMAND=VERSION"}, "hello", 6, "VERSION"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			stdout, exitCode := execute(t, tt.env, tt.stdin)
			var got struct {
				CNIVersion   string
				Code         int
				Msg, Details string
			}
			if err := json.Unmarshal([]byte(stdout), &got); err != nil {
				t.Fatalf("printed %q: %v", stdout, err)
			}
			if exitCode != 1 || got.Code != tt.code || !strings.Contains(got.Msg+got.Details, tt.want) || got.CNIVersion == "" {
				t.Errorf("exit code %d with %+v, want 1 with code %d and %q", exitCode, got, tt.code, tt.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	const supported = `"supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`
	for stdin, version := range map[string]string{
		"":                         "1.1.0",
		"\n":                       "1.1.0",
		"{}":                       "1.1.0",
		`{"cniVersion":"0.4.0"}`:   "0.4.0",
		`{"cniVersion":"99.9.99"}`: "99.9.99",
		`{"cniVersion":"1.0.0","supportedVersions":["7"]}`: "1.0.0",
	} {
		stdout, code := execute(t, []string{"CNI_COMMAND=VERSION"}, stdin)
		if want := `{"cniVersion":"` + version + `",` + supported; stdout != want || code != 0 {
			t.Errorf("VERSION with %q: exit code %d with %q, want %q", stdin, code, stdout, want)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestBrokenPipes(t *testing.T) {
	t.Parallel()
	version := func(string) string { return wire.CommandVersion }
	var out bytes.Buffer
	if code := run(version, iotest.ErrReader(errors.New("broken")), &out); code != 1 || !strings.Contains(out.String(), `"code":5`) {
		t.Errorf("stdin broken: exit code %d with %s", code, out.String())
	}
	if code := run(version, strings.NewReader(""), brokenWriter{}); code != 1 {
		t.Errorf("stdout broken: exit code %d", code)
	}
}

// BenchmarkStart measures from exec to the connection at the daemon.
func BenchmarkStart(b *testing.B) {
	connected := make(chan time.Time, 1)
	socket := daemon(b, func(conn net.Conn) {
		connected <- time.Now()
		if _, err := wire.ReadRequest(conn); err != nil {
			b.Error(err)
		}
		if err := wire.WriteReply(conn, &wire.Reply{}); err != nil {
			b.Error(err)
		}
	})
	path, stdin := plugin(b), config(socket, "1.0.0")
	var total time.Duration
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), path)
		cmd.Env, cmd.Stdin = environment("ADD"), strings.NewReader(stdin)
		start := time.Now()
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		total += (<-connected).Sub(start)
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs-to-connect/op")
}
