package dhcpd

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
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
	t           *testing.T
	dir, socket string
	m           *Manager
	initPID     int
	log         bytes.Buffer // of the manager; read after its end
	checked     chan string  // the container ids of the attachments that Check was called for
	mu          sync.Mutex
	selected    bool
	pods        []Attachment
	path        string
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
	r := &rig{t: t, dir: dir, socket: filepath.Join(dir, "s.sock"), checked: make(chan string, 16), path: self, initPID: 1}
	t.Cleanup(func() {
		// What a failed test has left running.
		if pid, err := New(Config{}).find(context.Background(), r.socket); err == nil && pid != os.Getpid() {
			p, _ := os.FindProcess(pid)
			if err := end(p); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// set changes what the manager sees.
func (r *rig) set(change func()) {
	r.mu.Lock()
	change()
	r.mu.Unlock()
	if r.m != nil {
		r.m.SelectionChanged()
	}
}

func (r *rig) choose(selected bool) { r.set(func() { r.selected = selected }) }

// confList is a network with the rig's daemon.
func (r *rig) confList() []byte { return fmt.Appendf(nil, list, "1.0.0", r.socket, "") }

// pod is an attachment that runs, to a network of that CNI version.
func (r *rig) pod(id, cniVersion, more string) Attachment {
	return Attachment{
		Attachment: &cni.Attachment{ContainerID: id, ConfList: fmt.Appendf(nil, list, cniVersion, r.socket, more)},
		Pod:        "ns/" + id, Up: true,
	}
}

// Attachments and Check are the rig's [Attachments].
func (r *rig) Attachments() ([]Attachment, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.pods), nil
}

func (r *rig) Check(_ context.Context, a Attachment) error {
	r.checked <- a.ContainerID
	switch a.ContainerID {
	case "removed":
		return wire.Errorf(wire.CodeUnknownContainer, "no such sandbox")
	case "failing":
		return errors.New("no offer")
	}
	return nil
}

// run runs a manager, as a crinetd would, until the function that it returns is
// called.
func (r *rig) run() (stop func()) {
	r.m = New(Config{
		Log: slog.New(slog.NewTextHandler(io.MultiWriter(&r.log, r.t.Output()), nil)), RunDir: r.dir,
		Find: func() (string, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.path == "" {
				return "", errors.New("no plugin dhcp here")
			}
			return r.path, nil
		},
		Selected: func() []byte {
			r.mu.Lock()
			defer r.mu.Unlock()
			if !r.selected {
				return nil
			}
			return r.confList()
		},
		Attachments: r,
	})
	r.m.initPID = r.initPID
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.m.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) await(what string, ok func(Daemon) bool) Daemon {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
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

const list = `{"cniVersion":%q,"name":"n","plugins":[{"type":"bridge","ipam":{"type":"dhcp","daemonSocketPath":%q}}]%s}`

func (r *rig) ready() error { return r.m.Ready(r.confList()) }

func none(d Daemon) bool { return d.Socket == "" }

// stays checks that a daemon is left alone for some looks of the manager.
func (r *rig) stays(pid int) {
	r.t.Helper()
	time.Sleep(2*poll + poll/2) // nothing must happen
	if d := r.await("runs", runs); d.PID != pid {
		r.t.Errorf("%+v, want process %d left alone", d, pid)
	}
}

func TestStartRestartAndEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.run()
	if err := r.ready(); err == nil || !strings.Contains(err.Error(), r.socket) {
		t.Errorf("before anything is selected a network that needs the daemon is ready: %v", err)
	}
	r.set(func() { r.selected, r.pods = true, []Attachment{r.pod("pod", "1.0.0", "")} })
	first := r.await("runs", runs)
	if !first.Own || first.Starts != 1 || r.ready() != nil {
		t.Errorf("%+v, ready: %v", first, r.ready())
	}
	if got := <-r.checked; got != "pod" {
		t.Errorf("the lease of %q was taken up", got)
	}
	if err := unix.Kill(first.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := r.await("was started again", func(d Daemon) bool { return d.PID != 0 && d.PID != first.PID })
	if second.Starts != 2 || !second.Own {
		t.Errorf("%+v", second)
	}
	<-r.checked

	// The next crinetd takes it over, and has nothing to take up again.
	stop()
	stop = r.run()
	if taken := r.await("is taken over", runs); taken.PID != second.PID || !taken.Own || taken.Starts != 0 {
		t.Errorf("%+v, want process %d taken over", taken, second.PID)
	}
	// A pod holds a lease: it stays, whatever is selected.
	r.choose(false)
	r.stays(second.PID)
	r.set(func() { r.pods = nil })
	r.await("is none", none)
	if err := unix.Kill(second.PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the daemon was not ended: %v", err)
	}
	if len(r.checked) != 0 {
		t.Error("leases were taken up from a daemon that had them")
	}
	stop()
}

// A daemon that goes on dying is started again, but not at once each time.
func TestDaemonThatGoesOnDying(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.run()
	r.choose(true)
	killed := 0
	waiting := r.await("waits to be started again", func(d Daemon) bool {
		if d.PID != 0 && d.PID != killed && unix.Kill(d.PID, unix.SIGKILL) == nil {
			killed = d.PID
		}
		return strings.Contains(d.Reason, fmt.Sprintf("has ended (process %d) and is started again at", killed))
	})
	if err := r.ready(); err == nil || !strings.Contains(err.Error(), "has ended") || waiting.PID != 0 {
		t.Errorf("%+v, ready: %v", waiting, err)
	}
	if d := r.await("runs", runs); d.Starts < 2 {
		t.Errorf("%+v, want one that was started again", d)
	}
	r.choose(false)
	r.await("is none", none)
}

// A lease counts as taken up only if CHECK ran and went well.
func TestLeasesThatAreNotRenewed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stopped := r.pod("stopped", "1.0.0", "")
	stopped.Up = false
	elsewhere := r.pod("elsewhere", "1.0.0", "")
	elsewhere.ConfList = fmt.Appendf(nil, list, "1.0.0", r.socket+"2", "")
	r.pods = []Attachment{
		r.pod("old", "0.3.1", ""), r.pod("off", "1.0.0", `,"disableCheck":true`), stopped, elsewhere,
		r.pod("removed", "1.0.0", ""), r.pod("failing", "1.0.0", ""), r.pod("good", "0.4.0", ""),
	}
	r.m = New(Config{Log: slog.New(slog.NewTextHandler(&r.log, nil)), Attachments: r})
	r.m.renew(t.Context(), r.socket)
	close(r.checked)
	var checked []string
	for id := range r.checked {
		checked = append(checked, id)
	}
	if diff := cmp.Diff([]string{"removed", "failing", "good"}, checked); diff != "" {
		t.Errorf("checked (-want +got):\n%s", diff)
	}
	for pod, want := range map[string]string{
		"old": "has no CHECK", "off": "has no CHECK", "failing": "no offer", "good": "taken up again",
	} {
		line := ""
		for l := range strings.Lines(r.log.String()) {
			if strings.Contains(l, "pod=ns/"+pod+" ") {
				line += l
			}
		}
		if isError := strings.Contains(line, "level=ERROR") && strings.Contains(line, "is not renewed"); isError == (pod == "good") || !strings.Contains(line, want) {
			t.Errorf("of pod %s is said %q, want %q", pod, line, want)
		}
	}
	for _, pod := range []string{"stopped", "elsewhere", "removed"} {
		if strings.Contains(r.log.String(), "pod=ns/"+pod) {
			t.Errorf("pod %s is told of:\n%s", pod, r.log.String())
		}
	}
}

func (r *rig) awaitSocket() {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conn, err := net.Dial("unix", r.socket); err == nil {
			_ = conn.Close()
			return
		} else if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

func TestForeignDaemonIsUsedAndLeft(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	foreign := exec.Command(r.path, "daemon", "-socketpath", r.socket, "-pidfile", filepath.Join(r.dir, "other.pid"))
	if err := foreign.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := foreign.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = foreign.Wait() // it was killed
	}()
	r.awaitSocket()
	r.run()
	r.choose(true)
	d := r.await("runs", runs)
	if d.Own || d.Starts != 0 || d.PID != foreign.Process.Pid {
		t.Errorf("%+v, want process %d, which is not crinetd's", d, foreign.Process.Pid)
	}
	r.choose(false)
	r.await("is none", none)
	if err := unix.Kill(d.PID, 0); err != nil {
		t.Errorf("somebody else's daemon was ended: %v", err)
	}
}

// The init system listens for a service that it starts: SO_PEERCRED names the
// init system, and the service's own pid is in a file beside the socket.
func TestInitSystemsSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	l, err := net.Listen("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
			_ = conn.Close()
		}
	}()
	r.initPID = os.Getpid() // the test plays the init system
	r.run()
	r.set(func() { r.selected, r.pods = true, []Attachment{r.pod("pod", "1.0.0", "")} })
	if d := r.await("runs", runs); d.PID != 1 || d.Own || d.Starts != 0 || r.ready() != nil {
		t.Errorf("%+v, ready: %v; want the init system's", d, r.ready())
	}
	pidFile := strings.TrimSuffix(r.socket, ".sock") + ".pid"
	for _, pid := range []int{4000001, 4000002} { // the service is started, and then again
		if err := os.WriteFile(pidFile, fmt.Append(nil, pid), 0o600); err != nil {
			t.Fatal(err)
		}
		r.await("is the service's", func(d Daemon) bool { return d.PID == pid && !d.Own })
		if got := <-r.checked; got != "pod" {
			t.Errorf("the lease of %q was taken up", got)
		}
	}
	r.set(func() { r.selected, r.pods = false, nil })
	r.await("is none", none)
	r.awaitSocket() // and is left alone
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// An own daemon that does not listen any more makes way for another.
func TestDeafDaemonIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.run()
	r.choose(true)
	deaf := r.await("runs", runs)
	if err := os.Remove(r.socket); err != nil {
		t.Fatal(err)
	}
	r.await("is another", func(d Daemon) bool { return d.PID != 0 && d.PID != deaf.PID && d.Own })
	if err := unix.Kill(deaf.PID, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the daemon that nobody can reach was not ended: %v", err)
	}
	r.choose(false)
	r.await("is none", none)
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
			r.choose(true)
			r.await("has a reason", func(d Daemon) bool { return strings.Contains(d.Reason, tt.want) })
			if err := r.ready(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Ready says %v, want %q", err, tt.want)
			}
			if tt.mend != nil {
				if err := tt.mend(r); err != nil {
					t.Fatal(err)
				}
				r.await("runs", runs)
				r.choose(false)
				r.await("is none", none)
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
	r.choose(true)
	r.await("runs", runs)
	r.choose(false)
	r.await("is none", none)
}

// What attached pods need is started whatever is selected: their DEL goes
// through it.
func TestAdoptsWhatPodsNeed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.pods = []Attachment{r.pod("pod", "1.0.0", "")}
	r.pods[0].Up = false // its DEL is still to be made
	r.run()
	r.await("runs", runs)
	r.set(func() { r.pods = nil })
	r.await("is none", none)
}

func TestSockets(t *testing.T) {
	t.Parallel()
	for conf, want := range map[string][]string{
		``:                              nil,
		`{"plugins":[{"ipam":"x"}]}`:    nil,
		`{"plugins":[{"type":"dhcp"}]}`: nil,
		`{"plugins":[{"ipam":{"type":"host-local"}}]}`: nil,
		`{"plugins":[{"ipam":{"type":"dhcp"}}]}`:       {"/run/cni/dhcp.sock"},
		fmt.Sprintf(list, "1.0.0", "/x", ""):           {"/x"},
		`{"plugins":[{"ipam":{"type":"dhcp"}},{"ipam":{"type":"dhcp","daemonSocketPath":"/x"}},{"ipam":{"type":"dhcp"}}]}`: {"/run/cni/dhcp.sock", "/x"},
	} {
		if got := Sockets([]byte(conf)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", conf, got, want)
		}
	}
}

// The units that are shipped are those that the manager counts on.
func TestUnits(t *testing.T) {
	t.Parallel()
	for file, want := range map[string][]string{
		"cni-dhcp.socket":  {"ListenStream=" + defaultSocket, "PartOf=cni-dhcp.service"},
		"cni-dhcp.service": {"ExecStart=/opt/cni/bin/dhcp daemon -pidfile " + strings.TrimSuffix(defaultSocket, ".sock") + ".pid", "Restart=always", "Requires=cni-dhcp.socket"},
	} {
		text, err := os.ReadFile("../../packaging/systemd/" + file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		for _, line := range want {
			if !slices.Contains(lines, line) {
				t.Errorf("%s has no line %q", file, line)
			}
		}
	}
}
