package dhcpd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/internal/peercred"
)

const (
	// connectTimeout bounds a connect to a daemon whose backlog is full.
	connectTimeout = 2 * time.Second
	// startTimeout is how long a daemon may take until it listens.
	startTimeout = 10 * time.Second
	// stopTimeout is how long it may take to end.
	stopTimeout = 5 * time.Second
	// shortPoll is the time from one look at a daemon that starts or ends to the
	// next.
	shortPoll = 10 * time.Millisecond
)

// find returns the pid of the daemon that listens on the socket. If that is the
// init system, which hands its socket to a service, or a process in another pid
// namespace, the daemon's own pid is in a file beside the socket (the unit
// cni-dhcp.service writes it); without one, find returns 1.
func (m *Manager) find(ctx context.Context, socket string) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	peer, err := peercred.Of(conn)
	if err != nil {
		return 0, fmt.Errorf("who listens on %s cannot be found out: %w", socket, err)
	}
	if pid = int(peer.Pid); pid == 0 || pid == m.initPID {
		return max(1, readPID(strings.TrimSuffix(socket, ".sock")+".pid")), nil
	}
	return pid, nil
}

// nobodyListens reports whether find failed because there is no daemon.
func nobodyListens(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// readPID returns the pid in a file, 0 if there is none.
func readPID(file string) int {
	text, _ := os.ReadFile(file)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// pidFile is where a daemon that crinetd starts writes its pid.
func (m *Manager) pidFile(socket string) string {
	sum := sha256.Sum256([]byte(socket))
	return filepath.Join(m.config.RunDir, fmt.Sprintf("dhcp-%x.pid", sum[:4]))
}

// start starts a daemon that outlives crinetd, and waits until it listens.
func (m *Manager) start(ctx context.Context, d *daemon) (pid int, err error) {
	path, err := m.config.Find()
	if err == nil {
		err = d.makeWay()
	}
	if err != nil {
		return 0, fmt.Errorf("cannot be started: %w", err)
	}
	cmd := exec.Command(path, "daemon", "-socketpath", d.Socket, "-pidfile", m.pidFile(d.Socket))
	// Its output goes where crinetd's log goes: a pipe would break with crinetd.
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/", []string{}, os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("cannot be started: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in ProcessState
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		pid, err := m.find(ctx, d.Socket)
		if err == nil {
			return pid, nil
		}
		select {
		case <-ended:
			return 0, fmt.Errorf("%s ended before it listened, its output is in crinetd's log: %v", path, cmd.ProcessState)
		case <-ctx.Done():
			return 0, fmt.Errorf("%s does not listen after %v: %w", path, startTimeout, errors.Join(err, cmd.Process.Kill()))
		case <-time.After(shortPoll):
		}
	}
}

// makeWay ends an own daemon that does not listen any more, since nobody can
// reach it and its leases, and removes a socket that nobody listens on, which a
// daemon does not do itself.
func (d *daemon) makeWay() error {
	if !filepath.IsAbs(d.Socket) {
		return errors.New("ipam.daemonSocketPath is no absolute path")
	}
	if d.process != nil {
		if err := end(d.process); err != nil {
			return err
		}
		d.process = nil
	}
	info, err := os.Lstat(d.Socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is in the way: it is no socket", d.Socket)
	}
	return os.Remove(d.Socket)
}

// end ends a process: with SIGTERM, and after stopTimeout with SIGKILL.
func end(p *os.Process) error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		err := p.Signal(signal)
		for deadline := time.Now().Add(stopTimeout); err == nil && time.Now().Before(deadline); err = p.Signal(syscall.Signal(0)) {
			backoff.Sleep(context.Background(), shortPoll)
		}
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("process %d: %w", p.Pid, err)
		}
	}
	return fmt.Errorf("process %d does not end", p.Pid)
}
