package watchdog

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/crinet-project/crinet/cni/wire"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// sockets serves CRI with a server that knows no method, and CNI with a refusal:
// both are answers.
func sockets(t *testing.T) (cri, cni string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	cri, cni = filepath.Join(dir, "cri"), filepath.Join(dir, "cni")
	criListener, err := net.Listen("unix", cri)
	if err != nil {
		t.Fatal(err)
	}
	cniListener, err := net.Listen("unix", cni)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(criListener) })
	wg.Go(func() {
		for {
			conn, err := cniListener.Accept()
			if err != nil {
				return
			}
			if r, err := wire.ReadRequest(conn); err != nil || r.Command != wire.CommandStatus {
				t.Errorf("request %+v, %v", r, err)
			}
			_ = wire.WriteReply(conn, &wire.Reply{Error: &wire.Error{Code: wire.CodeNotAvailable}})
			conn.Close()
		}
	})
	t.Cleanup(func() {
		server.Stop()
		if err := errors.Join(cniListener.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return cri, cni
}

// mute listens and never answers.
func mute(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// states runs a watchdog until it has said what stops it, or logged it.
func states(t *testing.T, c Config, until string) (said []string, log string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var logged strings.Builder
	seen := func(text string) {
		if strings.Contains(text, until) {
			cancel()
		}
	}
	c.Log = slog.New(slog.NewTextHandler(writer(func(line string) { logged.WriteString(line); seen(line) }), nil))
	c.Status = func() string { return "fine" }
	c.Notify = func(state string) error {
		said = append(said, state)
		seen(state)
		return nil
	}
	Run(ctx, c)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("%q was not said: %q, log: %s", until, said, logged.String())
	}
	return said, logged.String()
}

type writer func(string)

func (w writer) Write(p []byte) (int, error) { w(string(p)); return len(p), nil }

// TestSigns: an answer is a sign of life whatever it says, silence is none.
func TestSigns(t *testing.T) {
	t.Parallel()
	cri, cni := sockets(t)
	const soon = 300 * time.Millisecond
	if said, _ := states(t, Config{CRI: cri, CNI: cni, Interval: patience}, "WATCHDOG=1"); said[0] != "STATUS=fine" {
		t.Errorf("said %q", said)
	}
	gone := filepath.Join(t.TempDir(), "gone")
	for name, c := range map[string]Config{
		"CRI is mute": {CRI: mute(t), CNI: cni, Interval: soon},
		"CNI is mute": {CRI: cri, CNI: mute(t), Interval: soon},
		"CRI is gone": {CRI: gone, CNI: cni, Interval: soon},
	} {
		if said, _ := states(t, c, "does not answer its own question"); len(said) != 1 {
			t.Errorf("%s: said %q", name, said)
		}
	}
	// Starting anew would not help.
	if _, log := states(t, Config{CRI: gone, CNI: cni, Held: true, Interval: patience}, "WATCHDOG=1"); !strings.Contains(log, "restart crinetd.socket") {
		t.Errorf("log: %s", log)
	}
}

// A service manager that wants no sign of life costs a look at the status text a
// second, and no more.
func TestIdleWithoutInterval(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	looks := 0
	Run(ctx, Config{
		Status: func() string { looks++; return "network ready" },
		Notify: func(string) error { return nil },
		Log:    slog.New(slog.DiscardHandler),
	})
	if looks == 0 || looks > 2 {
		t.Errorf("%d looks in 1.5 s, want one a second", looks)
	}
}
