package dhcpd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the daemon that the tests start: the test's own binary with
// the arguments of `dhcp daemon`.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "daemon" {
		os.Exit(fakeDaemon(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func fakeDaemon(args []string) int {
	flags := flag.NewFlagSet("daemon", flag.ContinueOnError)
	socket, pidFile := flags.String("socketpath", "", ""), flags.String("pidfile", "", "")
	if flags.Parse(args) != nil {
		return 2
	}
	if os.WriteFile(*pidFile, fmt.Appendf(nil, "%d", os.Getpid()), 0o600) != nil {
		return 1
	}
	l, err := net.Listen("unix", *socket)
	if err != nil {
		return 1
	}
	deadline := time.After(2 * time.Minute) // whatever the test does
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		for {
			conn, err := l.Accept()
			if err != nil || conn.Close() != nil {
				return
			}
		}
	}()
	select {
	case <-deadline:
		return 0
	case <-broken:
		return 1
	}
}

// rig is a manager with knobs.
type rig struct {
	t              *testing.T
	dir, socket    string
	m              *Manager
	started        chan string
	mu             sync.Mutex
	selected, used []string
	path           string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "dhcpd")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, socket: filepath.Join(dir, "s"), started: make(chan string, 16), path: self}
	t.Cleanup(func() {
		// What a failed test has left running.
		if p, err := connect(context.Background(), r.socket); err == nil && p.pid != os.Getpid() {
			if err := p.end(time.Second); err != nil {
				t.Error(err)
			}
			p.close()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) get(s *[]string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(*s)
}

func (r *rig) set(s *[]string, to ...string) {
	r.mu.Lock()
	*s = to
	r.mu.Unlock()
	if r.m != nil {
		r.m.SelectionChanged()
	}
}

// run runs a manager, as a crinetd would, until the function that it returns is
// called.
func (r *rig) run() (stop func()) {
	r.m = New(Config{
		Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)), RunDir: r.dir,
		Find: func() (string, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.path == "" {
				return "", errors.New("no plugin dhcp here")
			}
			return r.path, nil
		},
		Selected: func() []string { return r.get(&r.selected) },
		InUse:    func() ([]string, error) { return r.get(&r.used), nil },
		Started:  func(_ context.Context, socket string) { r.started <- socket },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.m.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) await(what string, ok func(Daemon) bool) Daemon {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var d Daemon
		if all := r.m.Daemons(); len(all) > 0 {
			d = all[0]
		}
		if ok(d) {
			return d
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("no daemon that %s: %+v", what, d)
		}
	}
}

func runs(d Daemon) bool { return d.PID != 0 }

const list = `{"plugins":[{"type":"bridge","ipam":{"type":"dhcp","daemonSocketPath":%q}}]}`

func (r *rig) ready() error { return r.m.Ready(fmt.Appendf(nil, list, r.socket)) }

func TestStartRestartAndEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.run()
	if err := r.ready(); err == nil || !strings.Contains(err.Error(), r.socket) {
		t.Errorf("before anything is selected a network that needs the daemon is ready: %v", err)
	}
	r.set(&r.selected, r.socket)
	first := r.await("runs", runs)
	if !first.Own || first.Starts != 1 || r.ready() != nil {
		t.Errorf("%+v, ready: %v", first, r.ready())
	}
	if got := <-r.started; got != r.socket {
		t.Errorf("Started was told of %q", got)
	}
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := r.await("was started again", func(d Daemon) bool { return d.PID != 0 && d.PID != first.PID })
	if second.Starts != 2 || !second.Own {
		t.Errorf("%+v", second)
	}
	<-r.started

	// The next crinetd takes it over, and has nothing to take up again.
	stop()
	stop = r.run()
	if taken := r.await("is taken over", runs); taken.PID != second.PID || !taken.Own || taken.Starts != 0 {
		t.Errorf("%+v, want process %d taken over", taken, second.PID)
	}
	// A pod holds a lease: it stays, whatever is selected.
	r.set(&r.used, r.socket)
	r.set(&r.selected)
	time.Sleep(2*poll + poll/2) // two looks: nothing must happen
	if d := r.await("runs", runs); d.PID != second.PID {
		t.Errorf("%+v, want process %d left alone", d, second.PID)
	}
	r.set(&r.used)
	r.await("is none", func(d Daemon) bool { return d.Socket == "" })
	if err := unix.Kill(second.PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the daemon was not ended: %v", err)
	}
	if len(r.started) != 0 {
		t.Error("Started was called for a daemon that has its leases")
	}
	stop()
}

func TestForeignDaemonIsUsedAndLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	foreign, err := launch(r.path, "daemon", "-socketpath", r.socket, "-pidfile", filepath.Join(r.dir, "other.pid"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := foreign.kill(); err != nil {
			t.Error(err)
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", r.socket); err == nil {
			_ = conn.Close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	r.run()
	r.set(&r.selected, r.socket)
	d := r.await("runs", runs)
	if d.Own || d.Starts != 0 {
		t.Errorf("%+v, want one that is not crinetd's", d)
	}
	r.set(&r.selected)
	r.await("is none", func(d Daemon) bool { return d.Socket == "" })
	if err := unix.Kill(d.PID, 0); err != nil {
		t.Errorf("somebody else's daemon was ended: %v", err)
	}
}

func TestFaultsAreReported(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, want string
		spoil      func(r *rig) error
		mend       func(r *rig) error
	}{
		{"no plugin", "no plugin dhcp here",
			func(r *rig) error { r.path = ""; return nil },
			func(r *rig) error {
				self, err := os.Executable()
				r.mu.Lock()
				r.path = self
				r.mu.Unlock()
				return err
			}},
		{"ends at once", "ended before it listened, its output is in crinetd's log: exit status 1",
			func(r *rig) error { r.path = "/bin/false"; return nil }, nil},
		{"something in the way", "is in the way: it is no socket",
			func(r *rig) error { return os.WriteFile(r.socket, nil, 0o600) },
			func(r *rig) error { return os.Remove(r.socket) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			if err := tt.spoil(r); err != nil {
				t.Fatal(err)
			}
			r.run()
			r.set(&r.selected, r.socket)
			r.await("has a reason", func(d Daemon) bool { return strings.Contains(d.Reason, tt.want) })
			if err := r.ready(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Ready says %v, want %q", err, tt.want)
			}
			if tt.mend != nil {
				if err := tt.mend(r); err != nil {
					t.Fatal(err)
				}
				r.await("runs", runs)
				r.set(&r.selected)
				r.await("is none", func(d Daemon) bool { return d.Socket == "" })
			}
		})
	}
}

// A socket that a killed daemon left does not keep the next from starting.
func TestStaleSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.set(&r.selected, r.socket)
	r.await("runs", runs)
	r.set(&r.selected)
	r.await("is none", func(d Daemon) bool { return d.Socket == "" })
}

// What attached pods need is started whatever is selected: their DEL goes
// through it.
func TestAdoptsWhatPodsNeed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.used = []string{r.socket}
	r.run()
	r.await("runs", runs)
	r.set(&r.used)
	r.await("is none", func(d Daemon) bool { return d.Socket == "" })
}

func TestSockets(t *testing.T) {
	t.Parallel()
	for conf, want := range map[string][]string{
		``:                              nil,
		`{"plugins":[{"ipam":"x"}]}`:    nil,
		`{"plugins":[{"type":"dhcp"}]}`: nil,
		`{"plugins":[{"ipam":{"type":"host-local"}}]}`: nil,
		`{"plugins":[{"ipam":{"type":"dhcp"}}]}`:       {"/run/cni/dhcp.sock"},
		fmt.Sprintf(list, "/x"):                        {"/x"},
		`{"plugins":[{"ipam":{"type":"dhcp"}},{"ipam":{"type":"dhcp","daemonSocketPath":"/x"}},{"ipam":{"type":"dhcp"}}]}`: {"/run/cni/dhcp.sock", "/x"},
	} {
		if got := Sockets([]byte(conf)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", conf, got, want)
		}
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{-1: 0, 0: 0, 1: time.Second, 2: 2 * time.Second, 6: 32 * time.Second, 7: time.Minute, 1000: time.Minute} {
		if got := wait(failures); got != want {
			t.Errorf("after %d failures: %v, want %v", failures, got, want)
		}
	}
}
