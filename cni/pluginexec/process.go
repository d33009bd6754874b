package pluginexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pipeGrace is how long the pipes are read on after the plugin has ended:
	// a descendant may hold them open for as long as it likes.
	pipeGrace = 100 * time.Millisecond
	// killGrace is how long a killed plugin is waited for. One that hangs in
	// the kernel (a dead NFS server) does not die of SIGKILL.
	killGrace = time.Second
	// firstDelay is the pause before a start is tried again; it doubles.
	firstDelay = 5 * time.Millisecond
	maxDelay   = 100 * time.Millisecond
)

// process is a plugin that runs. stdout and stderr have deadlines set on them
// as soon as the plugin is killed or has ended, so that reading them ends.
type process struct {
	proc           *os.Process
	stdin          *os.File // nil once all is written
	stdout, stderr *os.File

	ended chan struct{} // closed when state and err are set
	state *os.ProcessState
	err   error

	mu     sync.Mutex
	reaped bool // its pid may belong to somebody else by now
	killed bool
}

// start starts the plugin, again and again for a short time if the file is
// just being written.
func (e *Exec) start(ctx context.Context, path string, stdin []byte, env []string) (*process, error) {
	var parent, child [3]*os.File // by the child's file descriptor
	defer func() { closeAll(child[:]) }()
	for fd := range child {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(parent[:])
			return nil, err
		}
		if child[fd], parent[fd] = w, r; fd == 0 {
			child[fd], parent[fd] = r, w
		}
	}
	// What fits into the pipe is written before the plugin runs, so that the
	// usual configuration costs no goroutine.
	rest, err := writeNow(parent[0], stdin)
	if err != nil {
		closeAll(parent[:])
		return nil, fmt.Errorf("write its stdin: %w", err)
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   e.environ(env),
		Files: child[:],
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	}
	proc, err := e.startRetry(ctx, path, attr)
	if err != nil {
		closeAll(parent[:])
		return nil, err
	}
	p := &process{proc: proc, stdin: parent[0], stdout: parent[1], stderr: parent[2], ended: make(chan struct{})}
	if len(rest) == 0 {
		_ = p.stdin.Close()
		p.stdin = nil
	} else {
		go writeRest(p.stdin, rest)
	}
	go p.wait()
	return p, nil
}

// startRetry is os.StartProcess, repeated while the file is being copied.
func (e *Exec) startRetry(ctx context.Context, path string, attr *os.ProcAttr) (*os.Process, error) {
	deadline := time.Now().Add(e.cfg.Retry)
	for delay := firstDelay; ; delay = min(2*delay, maxDelay) {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		proc, err := os.StartProcess(path, []string{path}, attr)
		if err == nil {
			return proc, nil
		}
		var perr *os.PathError
		if errors.As(err, &perr) {
			err = perr.Err // the path is in our own error
		}
		if !errors.Is(err, syscall.ETXTBSY) && !errors.Is(err, syscall.ENOEXEC) {
			return nil, err
		}
		if time.Until(deadline) < delay {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; last try: %w", context.Cause(ctx), err)
		case <-time.After(delay):
		}
	}
}

// wait reaps the plugin. It marks the pid as given up before the kernel may
// reuse it.
func (p *process) wait() {
	defer close(p.ended)
	for {
		err := unix.Waitid(unix.P_PID, p.proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, syscall.EINTR) {
			break // any other error comes again from Wait
		}
	}
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.state, p.err = p.proc.Wait()
	p.endReading()
}

// kill sends SIGKILL to the plugin's process group, once and only while the
// plugin itself has not been reaped.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped || p.killed {
		return
	}
	p.killed = true
	// It fails only if the group is gone, which the status will tell.
	_ = syscall.Kill(-p.proc.Pid, syscall.SIGKILL)
	p.endReading()
}

func (p *process) wasKilled() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.killed
}

// endReading gives both readers pipeGrace to find the end of their pipe. The
// errors say that the pipe is closed already, and then nobody reads.
func (p *process) endReading() {
	deadline := time.Now().Add(pipeGrace)
	_ = p.stdout.SetReadDeadline(deadline)
	_ = p.stderr.SetReadDeadline(deadline)
}

// await waits for the plugin's end, for a killed one at most killGrace. It
// reports whether it has ended.
func (p *process) await(ctx context.Context) bool {
	select {
	case <-p.ended:
		return true
	case <-ctx.Done():
	}
	t := time.NewTimer(killGrace)
	defer t.Stop()
	select {
	case <-p.ended:
		return true
	case <-t.C:
		return false
	}
}

// close releases the pipes; a goroutine that still writes stdin ends by it.
func (p *process) close() {
	closeAll([]*os.File{p.stdin, p.stdout, p.stderr})
}

// closeAll closes pipe ends. Closing a pipe has no result that matters.
func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// writeNow writes what the pipe w takes without waiting and returns the rest.
func writeNow(w *os.File, data []byte) (rest []byte, err error) {
	rc, err := w.SyscallConn()
	if err != nil {
		return nil, err
	}
	for len(data) > 0 && err == nil {
		var n int
		cerr := rc.Write(func(fd uintptr) bool {
			n, err = syscall.Write(int(fd), data)
			return true
		})
		if cerr != nil {
			return nil, cerr
		}
		data = data[max(n, 0):]
		if errors.Is(err, syscall.EINTR) {
			err = nil
		}
	}
	if errors.Is(err, syscall.EAGAIN) {
		err = nil
	}
	return data, err
}

// writeRest writes a large stdin. A plugin need not read it, so that errors
// mean nothing.
func writeRest(w *os.File, data []byte) {
	_, _ = w.Write(data)
	_ = w.Close()
}

// readAll reads r to its end or deadline, or until there are more than limit
// bytes, which full reports.
func readAll(r *os.File, limit int) (data []byte, full bool) {
	data = make([]byte, 0, min(4096, limit+1))
	for {
		if len(data) == cap(data) {
			bigger := make([]byte, len(data), min(4*cap(data), limit+1))
			copy(bigger, data)
			data = bigger
		}
		n, err := r.Read(data[len(data):cap(data)])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			n, err = readNow(r, data[len(data):cap(data)])
		}
		data = data[:len(data)+n]
		if len(data) > limit {
			return data[:limit], true
		}
		if err != nil {
			return data, false
		}
	}
}

// readNow reads what the pipe holds already: after the deadline a plain Read
// no longer looks.
func readNow(r *os.File, buf []byte) (int, error) {
	if err := r.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	rc, err := r.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	cerr := rc.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), buf)
		return true
	})
	if derr := r.SetReadDeadline(time.Unix(1, 0)); derr != nil {
		return max(n, 0), derr
	}
	if cerr == nil && err == nil && n == 0 {
		cerr = io.EOF
	}
	return max(n, 0), errors.Join(cerr, err)
}

// readHead reads r to its end or deadline and keeps the first limit bytes.
func readHead(r *os.File, limit int) []byte {
	data, full := readAll(r, limit)
	if !full {
		return data
	}
	buf := make([]byte, 32<<10)
	for {
		if _, err := r.Read(buf); err != nil {
			return data
		}
	}
}
