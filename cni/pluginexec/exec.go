package pluginexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Defaults of [Config].
const (
	DefaultMaxStdout = 1 << 20
	DefaultMaxStderr = 64 << 10
	DefaultRetry     = time.Second
)

// safePath is what is always on a plugin's PATH: plugins run iptables,
// modprobe, ip and the like, and a service manager may hand the daemon no PATH.
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
}

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
	return &Exec{cfg: cfg, path: "PATH=" + pluginPath(os.Getenv("PATH"))}
}

// Run executes the binary at path, which must be absolute, with stdin and env,
// and returns what it printed. A PATH in env is kept; else one is added: the
// daemon's PATH and a constant default. The working directory is "/".
//
// Both outputs are returned with an error too, as far as they were read. The
// error is an [*Error].
func (e *Exec) Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	begun := time.Now()
	fail := func(err error) ([]byte, []byte, error) {
		return nil, nil, &Error{Path: path, Kind: ErrStart, ExitCode: -1, Cause: err, Elapsed: time.Since(begun)}
	}
	if !filepath.IsAbs(path) {
		return fail(errors.New("its path is not absolute"))
	}
	if e.cfg.Timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, e.cfg.Timeout)
		defer stop()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	p, err := e.start(ctx, path, stdin, env)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
			return nil, nil, &Error{Path: path, Kind: kindOf(cause), ExitCode: -1, Cause: err, Elapsed: time.Since(begun)}
		}
		return fail(err)
	}
	defer p.close()
	defer context.AfterFunc(ctx, p.kill)()

	stderrRead := make(chan []byte, 1)
	go func() { stderrRead <- readHead(p.stderr, e.cfg.MaxStderr) }()
	stdout, full := readAll(p.stdout, e.cfg.MaxStdout)
	if full {
		cancel(outputError(e.cfg.MaxStdout))
	}
	stderr = <-stderrRead
	ended := p.await(ctx)

	perr := &Error{Path: path, ExitCode: -1, Stderr: excerpt(stderr), Elapsed: time.Since(begun)}
	if !p.judge(perr, ended, full, context.Cause(ctx)) {
		return stdout, stderr, perr
	}
	return stdout, stderr, nil
}

// judge fills perr in and reports whether the run went well. A plugin that
// ended by itself is judged by its status, even if the context ended in the
// same moment.
func (p *process) judge(perr *Error, ended, full bool, cause error) bool {
	var status syscall.WaitStatus
	if ended && p.err == nil {
		status, _ = p.state.Sys().(syscall.WaitStatus)
		if status.Exited() {
			perr.ExitCode = status.ExitStatus()
		} else {
			perr.Signal = status.Signal()
		}
	}
	byItself := ended && (status.Exited() || !p.wasKilled())
	switch {
	case full:
		perr.Kind, perr.Cause = ErrOutput, cause
	case !byItself:
		perr.Kind, perr.Cause = kindOf(cause), cause
	case p.err != nil:
		perr.Kind, perr.Cause = ErrExit, p.err
	case perr.ExitCode == 0:
		return true
	default:
		perr.Kind = ErrExit
	}
	return false
}

// outputError is the cause of a run that was ended because stdout grew beyond
// the limit, given in bytes.
func outputError(limit int) error {
	return fmt.Errorf("%w: stdout has more than %d bytes", ErrOutput, limit)
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

// environ returns env with the mark and a PATH. env itself is not changed.
func (e *Exec) environ(env []string) []string {
	if e.cfg.Mark != "" {
		env = append(slices.Clip(env), e.cfg.Mark)
	}
	for _, kv := range env {
		if strings.HasPrefix(kv, "PATH=") {
			return env
		}
	}
	return append(slices.Clip(env), e.path)
}
