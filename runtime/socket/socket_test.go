package socket

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/testkit"
)

// helperEnv makes this test binary a client that connects to the named socket.
const helperEnv = "CRINET_SOCKET_TEST_CONNECT"

func TestMain(m *testing.M) {
	if os.Getenv(activatedEnv) != "" {
		os.Exit(serveActivated())
	}
	path := os.Getenv(helperEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		os.Exit(3)
	}
	if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
		os.Exit(4) // closed on us
	}
	os.Exit(0)
}

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func listen(t *testing.T, path string, allow ...uint32) net.Listener {
	t.Helper()
	l, err := Listen(t.Context(), path, nil, allow...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// greet answers every connection with "ok" until the listener closes.
func greet(t *testing.T, l net.Listener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			// A Listen that looks whether we live has hung up by now.
			if _, err := conn.Write([]byte("ok")); err != nil && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("greeting: %v", err)
			}
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func dial(t *testing.T, path string) error {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.ReadFull(conn, make([]byte, 2))
	return err
}

func onlyFile(t *testing.T, dir string) fs.FileInfo {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("in %s: %v, %v, want one file", dir, entries, err)
	}
	info, err := entries[0].Info()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestListen(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := filepath.Join(dir, "s.sock")
	l := listen(t, path)
	greet(t, l)
	if info := onlyFile(t, dir); info.Name() != "s.sock" || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("%s has mode %v", info.Name(), info.Mode())
	}
	if l.Addr().String() != path {
		t.Errorf("Addr is %v", l.Addr())
	}
	if err := dial(t, path); err != nil {
		t.Errorf("connecting: %v", err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// leaveStale leaves the socket of a process that died.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReplacesStale(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := filepath.Join(dir, "s.sock")
	leaveStale(t, path)
	leaveStale(t, temporaryName(path)) // of a crash between bind and rename
	greet(t, listen(t, path))
	onlyFile(t, dir)
	if err := dial(t, path); err != nil {
		t.Errorf("connecting: %v", err)
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	greet(t, listen(t, at("live")))
	if err := os.WriteFile(at("file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(at("live"), at("link")); err != nil {
		t.Fatal(err)
	}
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at("datagram")})
	if err != nil {
		t.Fatal(err)
	}
	defer datagram.Close()
	tests := []struct {
		name, path, want string
		is               error
	}{
		{"live", at("live"), "(pid ", ErrInUse},
		{"of another type", at("datagram"), "does not answer", ErrInUse},
		{"file", at("file"), "not a socket", nil},
		{"symlink", at("link"), "not a socket", nil},
		{"no directory", at("missing/s.sock"), "opening its directory", fs.ErrNotExist},
		{"relative", "s.sock", "absolute path", nil},
		{"empty", "", "absolute path", nil},
		{"too long", at(strings.Repeat("x", 108-len(dir)-1)), "108 bytes", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Listen(t.Context(), tt.path, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), tt.path) || (tt.is != nil && !errors.Is(err, tt.is)) {
				t.Errorf("Listen: %v, %v, want an error with %q", l, err, tt.want)
			}
		})
	}
	if err := dial(t, at("live")); err != nil {
		t.Errorf("the live socket no longer answers: %v", err)
	}
	if _, err := os.Lstat(at("file")); err != nil {
		t.Error(err)
	}
}

func TestLongestPath(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := filepath.Join(dir, strings.Repeat("x", maxPath-len(dir)-1))
	if len(path) != maxPath {
		t.Fatalf("path has %d bytes", len(path))
	}
	greet(t, listen(t, path))
	if err := dial(t, path); err != nil {
		t.Error(err)
	}
}

func TestTemporaryName(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{"/a/s.sock": "/a/s.soc~", "/a/s~": "/a/s#"} {
		if got := temporaryName(path); got != want {
			t.Errorf("temporaryName(%q) = %q, want %q", path, got, want)
		}
	}
}

// TestCloseKeepsAnothers has somebody else take the path over.
func TestCloseKeepsAnothers(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	path := filepath.Join(dir, "s.sock")
	l := listen(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	greet(t, listen(t, path))
	if err := l.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := dial(t, path); err != nil {
		t.Errorf("the other's socket is gone: %v", err)
	}
}

// TestManyAtOnce starts several at once: exactly one serves.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(tempDir(t), "s.sock")
	leaveStale(t, path)
	const starters = 16
	got := make(chan net.Listener, starters)
	var wg sync.WaitGroup
	for range starters {
		wg.Go(func() {
			l, err := Listen(t.Context(), path, nil)
			if err != nil {
				if !errors.Is(err, ErrInUse) {
					t.Errorf("Listen: %v", err)
				}
				return
			}
			got <- l
		})
	}
	wg.Wait()
	close(got)
	var all []net.Listener
	for l := range got {
		all = append(all, l)
	}
	if len(all) != 1 {
		t.Errorf("%d serve, want 1", len(all))
	}
	for _, l := range all {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLockedDirectory(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), filepath.Join(dir, "s"), nil); err == nil || !strings.Contains(err.Error(), "locked by another process") {
		t.Errorf("locked directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Listen(ctx, filepath.Join(dir, "s"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("locked directory and an ended context: %v", err)
	}
}

// TestOtherUsers connects as another user, whom the mode alone would not stop.
func TestOtherUsers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		if os.Getenv("CRINET_TEST_REQUIRE_ALL") == "1" {
			t.Fatal("connecting as another user needs root")
		}
		t.Skip("connecting as another user needs root")
	}
	const stranger, friend = 64001, 64002
	dir := tempDir(t)
	path := filepath.Join(dir, "s.sock")
	var log testkit.Log
	l, err := Listen(t.Context(), path, slog.New(slog.NewTextHandler(&log, nil)), friend)
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l)
	// The client is a copy of this test where every user can run it.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	client := filepath.Join(dir, "client")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(client, binary, 0o755), os.Chmod(path, 0o666)); err != nil {
		t.Fatal(err)
	}
	for uid, want := range map[uint32]int{0: 0, friend: 0, stranger: 4} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		cmd := exec.CommandContext(ctx, client)
		cmd.Env = []string{helperEnv + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != want {
			t.Errorf("uid %d: %v, want exit code %d: %s", uid, err, want, out)
		}
		cancel()
	}
	if !strings.Contains(log.String(), "uid=64001") || !strings.Contains(log.String(), "pid=") || strings.Contains(log.String(), "uid=64002") {
		t.Errorf("log of refusals:\n%s", log.String())
	}
}
