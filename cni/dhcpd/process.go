package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connectTimeout bounds a connect to a daemon whose backlog is full.
const connectTimeout = 2 * time.Second

// process is the process that listens on a daemon's socket. A pidfd (one that
// can be waited for with a deadline: Linux 5.10) tells of its end, whoever
// started it, and is never another process's.
type process struct {
	pid  int
	fd   int
	file *os.File // of fd; its Fd method would end the deadlines
}

// connect finds the process that listens on a socket.
func connect(ctx context.Context, socket string) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // nothing was written
	pid, err := listener(conn)
	if err != nil {
		return nil, fmt.Errorf("who listens on %s cannot be found out: %w", socket, err)
	}
	// Connected to: it lived a moment ago.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d, which listens on %s: %w", pid, socket, err)
	}
	return &process{pid: pid, fd: fd, file: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// nobodyListens says whether connect failed because there is no daemon.
func nobodyListens(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// listener is the process that has made the socket at the other end (unix(7),
// SO_PEERCRED).
func listener(conn net.Conn) (pid int, err error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if sockErr != nil {
		return 0, sockErr
	}
	return int(cred.Pid), nil
}

// wait waits until the process is gone, for at most a time, or until ctx ends.
func (p *process) wait(ctx context.Context, most time.Duration) (gone bool) {
	// Without a deadline there is no waiting, and the caller polls.
	if err := p.file.SetReadDeadline(time.Now().Add(most)); err != nil {
		return p.gone()
	}
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := p.file.SyscallConn()
	if err != nil {
		return p.gone()
	}
	// A pidfd is readable when its process has ended (pidfd_open(2)).
	_ = raw.Read(func(uintptr) bool { return p.gone() }) // a deadline is no fault
	return p.gone()
}

func (p *process) gone() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// end ends the process: it gets a time after SIGTERM.
func (p *process) end(most time.Duration) error {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		err := unix.PidfdSendSignal(p.fd, signal, nil, 0)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("send %v to process %d: %w", signal, p.pid, err)
		}
		if p.wait(context.Background(), most) {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", p.pid)
}

func (p *process) close() { _ = p.file.Close() } // only looked at

// launched is a program that was started and has not been heard of yet.
type launched struct {
	ended <-chan error // how it ended
	kill  func() error
}

// launch starts a program that outlives crinetd: in a session of its own, its
// output where crinetd's log goes, since a pipe to crinetd would break.
func launch(path string, args ...string) (*launched, error) {
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return &launched{ended: ended, kill: cmd.Process.Kill}, nil
}

// removeStale removes a socket that nobody listens on: the daemon does not do
// it itself.
func removeStale(socket string) error {
	info, err := os.Lstat(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: it is no socket", socket)
	}
	return os.Remove(socket)
}
