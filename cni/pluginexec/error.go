package pluginexec

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// The ways in which a run fails. For errors.Is every error of [Exec.Run] is
// exactly one of them.
var (
	// ErrStart: the binary could not be executed at all; errors.Is also finds
	// the errno (ENOENT, EACCES, ENOEXEC, ETXTBSY, …).
	ErrStart = errors.New("cannot be started")
	// ErrTimeout: the context's deadline or Config.Timeout passed, the process
	// group was killed. errors.Is also finds context.DeadlineExceeded.
	ErrTimeout = errors.New("did not finish in time")
	// ErrCanceled: the context was cancelled, the process group was killed.
	// errors.Is also finds the context's cause.
	ErrCanceled = errors.New("was cancelled")
	// ErrOutput: stdout passed Config.MaxStdout, the process group was killed.
	ErrOutput = errors.New("printed too much")
	// ErrExit: the plugin ended by itself with a status that is not 0, or by a
	// signal. What it printed on stdout is returned: the specification's error
	// object belongs there.
	ErrExit = errors.New("failed")
)

// maxExcerpt is how much of a plugin's stderr an error message shows, in bytes.
const maxExcerpt = 512

// Error says how a run of a plugin failed.
type Error struct {
	Path     string         // the plugin's path
	Kind     error          // one of the Err… values above
	ExitCode int            // the exit status; -1 if it did not exit by itself
	Signal   syscall.Signal // what ended it; 0 if it was no signal
	Stderr   string         // the first 512 bytes of what it printed there
	Elapsed  time.Duration  // from the first attempt to start it
	Cause    error          // errno, context error or limit; may be nil
}

// Error names the plugin, how it ended, after how long if it was killed, and
// what it printed on stderr.
func (e *Error) Error() string {
	said := ""
	if e.Stderr != "" {
		said = fmt.Sprintf("; stderr: %q", e.Stderr)
	}
	return "plugin " + e.Path + ": " + e.how() + said
}

func (e *Error) how() string {
	switch {
	case errors.Is(e.Kind, ErrStart):
		return fmt.Sprintf("cannot be started: %v", e.Cause)
	case errors.Is(e.Kind, ErrOutput):
		return fmt.Sprintf("killed: %v", e.Cause)
	case errors.Is(e.Kind, ErrTimeout), errors.Is(e.Kind, ErrCanceled):
		return fmt.Sprintf("%v, stopped after %s: %v", e.Kind, e.Elapsed.Round(time.Millisecond), e.Cause)
	case e.Signal != 0:
		return fmt.Sprintf("ended by signal %d (%v)", int(e.Signal), e.Signal)
	case e.ExitCode >= 0:
		return fmt.Sprintf("exit status %d", e.ExitCode)
	}
	return fmt.Sprintf("cannot be waited for: %v", e.Cause)
}

// Unwrap makes Kind and Cause visible to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// excerpt returns the start of a plugin's stderr, cut between characters.
func excerpt(stderr []byte) string {
	if len(stderr) <= maxExcerpt {
		return strings.TrimSpace(string(stderr))
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(stderr[:maxExcerpt]), "")) + " …"
}
