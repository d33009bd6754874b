package pluginexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

// Defaults of [Config].
const (
	DefaultMaxStdout = 1 << 20
	DefaultMaxStderr = 64 << 10
	DefaultRetry     = time.Second
)

const (
	// pipeGrace is how long the pipes are read on after the plugin has ended or
	// was killed: a descendant may hold them open for as long as it likes.
	pipeGrace = 200 * time.Millisecond
	// killGrace is how long Run waits for a killed plugin. One that hangs in
	// the kernel (a dead NFS server) does not die of SIGKILL.
	killGrace = time.Second
	// firstDelay and maxDelay are the waits before a start is tried again.
	firstDelay = 5 * time.Millisecond
	maxDelay   = 100 * time.Millisecond
)

// safePath is always on a plugin's PATH: plugins run iptables, modprobe, ip and
// the like, and a service manager may give the daemon no PATH.
const safePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Config limits every run of an [Exec]. The zero value means the defaults.
type Config struct {
	// Timeout ends a run that takes longer; 0 leaves it to the context.
	Timeout time.Duration
	// MaxStdout is how many bytes a plugin may print on stdout before it is
	// killed; 0 means DefaultMaxStdout.
	MaxStdout int
	// MaxStderr is how many bytes of stderr are kept; what follows is read and
	// dropped. 0 means DefaultMaxStderr.
	MaxStderr int
	// Retry is how long a start that fails with ETXTBSY or ENOEXEC is tried
	// again: a binary that is being copied gives these. 0 means DefaultRetry,
	// a negative value no retry.
	Retry time.Duration
	// Mark, if set, is an environment variable, NAME=value, that every plugin
	// gets, by which KillOrphans knows it.
	Mark string
}

// Exec runs plugin binaries.
type Exec struct {
	cfg  Config
	path string // the PATH entry of the environment
	// procs is the GOMAXPROCS entry of the environment. Most plugins are Go programs
	// that live for milliseconds: on a machine with many processors the start of Go's
	// runtime, which prepares itself for all of them, takes longer than their work
	// (containerd/containerd#10897).
	procs string
}

// maxProcs is what plugins get as GOMAXPROCS, where there are as many processors.
const maxProcs = 2

// New returns an Exec with cfg's limits. It reads the daemon's PATH once.
func New(cfg Config) *Exec {
	if cfg.MaxStdout <= 0 {
		cfg.MaxStdout = DefaultMaxStdout
	}
	if cfg.MaxStderr <= 0 {
		cfg.MaxStderr = DefaultMaxStderr
	}
	if cfg.Retry == 0 {
		cfg.Retry = DefaultRetry
	}
	return &Exec{
		cfg: cfg, path: "PATH=" + pluginPath(os.Getenv("PATH")),
		procs: fmt.Sprintf("GOMAXPROCS=%d", min(maxProcs, runtime.NumCPU())),
	}
}

// Run executes the binary at path, which must be absolute, with stdin and env,
// and returns what it printed. A PATH in env is kept; else one is added: the
// daemon's PATH and a constant default. The working directory is "/".
//
// With an error, too, both outputs are returned as far as they were read. The
// error is an [*Error].
func (e *Exec) Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	begun := time.Now()
	if e.cfg.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, e.cfg.Timeout)
		defer stop()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out := &head{limit: e.cfg.MaxStdout, full: func() {
		cancel(fmt.Errorf("%w: stdout has more than %d bytes", ErrOutput, e.cfg.MaxStdout))
	}}
	errOut := &head{limit: e.cfg.MaxStderr}
	failure := &Error{Path: path, ExitCode: -1}
	cmd, finish, err := e.startWith(ctx, path, out, errOut, func(cmd *exec.Cmd) {
		cmd.Env, cmd.Stdin = e.environ(env), bytes.NewReader(stdin)
	})
	if err != nil {
		failure.Kind, failure.Cause = ErrStart, err
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
			failure.Kind = kindOf(cause)
		}
	} else {
		state, err := await(ctx, cmd)
		finish()
		failure.judge(ctx, state, err)
	}
	stdout, stderr = out.bytes(), errOut.bytes()
	if failure.Kind == nil {
		return stdout, stderr, nil
	}
	failure.Stderr, failure.Elapsed = excerpt(stderr), time.Since(begun)
	return stdout, stderr, failure
}

// startWith starts the plugin and has its output read. finish must be called when
// it has ended.
func (e *Exec) startWith(ctx context.Context, path string, out, errOut *head, prepare func(*exec.Cmd)) (cmd *exec.Cmd, finish func(), err error) {
	stdout, err := newOutput(out)
	if err != nil {
		return nil, nil, err
	}
	stderr, err := newOutput(errOut)
	if err != nil {
		stdout.close()
		return nil, nil, err
	}
	cmd, err = e.start(ctx, path, func(cmd *exec.Cmd) {
		prepare(cmd)
		cmd.Stdout, cmd.Stderr = stdout.w, stderr.w
	})
	if err != nil {
		stdout.close()
		stderr.close()
		return nil, nil, err
	}
	stdout.read()
	stderr.read()
	return cmd, func() {
		var both sync.WaitGroup
		both.Go(func() { stdout.finish(pipeGrace) })
		both.Go(func() { stderr.finish(pipeGrace) })
		both.Wait()
	}, nil
}

// start starts the plugin as the leader of a process group, which is killed
// when ctx ends. While the file is being copied it tries again, for Config.Retry
// at most. prepare completes each attempt's command.
func (e *Exec) start(ctx context.Context, path string, prepare func(*exec.Cmd)) (*exec.Cmd, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("its path is not absolute")
	}
	deadline := time.Now().Add(e.cfg.Retry)
	pause := backoff.Backoff{First: firstDelay, Max: maxDelay}
	var last error // of the try before
	ended := func() error {
		if last == nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%w; last try: %w", context.Cause(ctx), last)
	}
	for {
		if ctx.Err() != nil {
			return nil, ended()
		}
		cmd := exec.CommandContext(ctx, path)
		cmd.Dir, cmd.SysProcAttr, cmd.WaitDelay = "/", &syscall.SysProcAttr{Setpgid: true}, pipeGrace
		cmd.Cancel = func() error { return killGroup(cmd.Process) }
		prepare(cmd)
		err := cmd.Start()
		if err == nil {
			return cmd, nil
		}
		var perr *os.PathError
		switch {
		case errors.Is(err, ctx.Err()):
			return nil, ended()
		case errors.As(err, &perr):
			err = perr.Err // Error names the path itself
		}
		delay := pause.Next()
		if !errors.Is(err, syscall.ETXTBSY) && !errors.Is(err, syscall.ENOEXEC) || time.Until(deadline) < delay {
			return nil, err
		}
		last = err
		if !backoff.Sleep(ctx, delay) {
			return nil, ended()
		}
	}
}

// killGroup kills the process group that a plugin leads, unless the plugin has
// ended by itself: what it left behind is left alone, and its pid may belong to
// another process.
func killGroup(leader *os.Process) error {
	if err := leader.Signal(syscall.Signal(0)); err != nil {
		return err
	}
	return syscall.Kill(-leader.Pid, syscall.SIGKILL)
}

// await waits for the plugin's end. For a killed one it waits killGrace at most;
// both results are then nil.
func await(ctx context.Context, cmd *exec.Cmd) (*os.ProcessState, error) {
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return cmd.ProcessState, err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return cmd.ProcessState, err
	case <-time.After(killGrace):
		return nil, nil
	}
}

// judge notes how a run ended; Kind stays nil if it went well. A plugin that
// ended by itself is judged by its status, even if ctx ended in the same moment.
func (e *Error) judge(ctx context.Context, state *os.ProcessState, err error) {
	cause := context.Cause(ctx)
	if state != nil {
		e.ExitCode = state.ExitCode()
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			e.Signal = status.Signal()
		}
	}
	killed := state == nil || e.Signal == syscall.SIGKILL
	switch {
	case errors.Is(cause, ErrOutput):
		e.Kind, e.Cause = ErrOutput, cause
	case killed && cause != nil:
		e.Kind, e.Cause = kindOf(cause), cause
	case state == nil:
		e.Kind, e.Cause = ErrExit, err
	case e.ExitCode != 0:
		e.Kind = ErrExit
	}
}

// kindOf says what a context's cause means for a run that it ended.
func kindOf(cause error) error {
	if errors.Is(cause, context.DeadlineExceeded) {
		return ErrTimeout
	}
	return ErrCanceled
}

// pluginPath returns the absolute directories of the daemon's PATH and those
// of safePath that it lacks.
func pluginPath(daemon string) string {
	var dirs []string
	for _, dir := range append(filepath.SplitList(daemon), filepath.SplitList(safePath)...) {
		if filepath.IsAbs(dir) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, ":")
}

// environ returns env with the mark, GOMAXPROCS and a PATH. It does not change env.
func (e *Exec) environ(env []string) []string {
	env = append(slices.Clone(env), e.procs)
	if e.cfg.Mark != "" {
		env = append(env, e.cfg.Mark)
	}
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		return env
	}
	return append(env, e.path)
}
