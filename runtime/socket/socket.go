// Package socket opens the unix sockets that crinetd serves on.
//
// A socket appears under its path in one step, with mode 0600 from the first
// instant. It replaces one that a dead process left; if a live process answers,
// [Listen] refuses. The kernel says who connects (SO_PEERCRED, unix(7)): root,
// crinetd's own user and named users may.
//
// Close removes the path, unless it belongs to somebody else by then. After a
// crash the file stays; the next Listen replaces it.
package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/peercred"
)

const (
	// maxPath is what fits into sockaddr_un with its final NUL (unix(7)).
	maxPath = 107
	// mode is the socket's; whoever connects needs the right to write.
	mode = 0o600
	// patience bounds the wait for a socket's answer and for the folder's lock.
	patience = 2 * time.Second
	// lockPoll is the time between two tries for the folder's lock.
	lockPoll = 10 * time.Millisecond
)

// ErrInUse is in the error of Listen when a live process serves on the path.
var ErrInUse = errors.New("socket is in use")

// Listen listens on the unix socket at path, whose folder must exist. Root, the
// process's effective user and the users in allow may connect; the listener closes
// the connections of all others and logs them. A nil log discards.
func Listen(ctx context.Context, path string, log *slog.Logger, allow ...uint32) (net.Listener, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket %q: want an absolute path", path)
	}
	path = filepath.Clean(path)
	if len(path) > maxPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes and the kernel takes %d at most; choose a shorter directory", path, len(path), maxPath)
	}
	unlock, err := lockDir(ctx, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer unlock()
	if err := checkFree(ctx, path); err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l, err := bind(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.log = log.With("socket", path)
	l.allow = append(slices.Clone(allow), 0, uint32(os.Geteuid()))
	return l, nil
}

// lockDir locks the folder against other crinetd processes that make sockets in
// it. The lock is on the folder itself: it leaves no file and ends with the process.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening its directory: %w", err)
	}
	deadline := time.Now().Add(patience)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil // nothing was written
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("locking its directory %s: %w", dir, err), f.Close())
		case time.Now().After(deadline):
			return nil, errors.Join(fmt.Errorf("its directory %s has been locked by another process for %v; is another crinetd starting?", dir, patience), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("locking its directory %s: %w", dir, ctx.Err()), f.Close())
		case <-time.After(lockPoll):
		}
	}
}

// checkFree returns nil if there is nothing at path, or a socket that nobody serves.
func checkFree(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("there is something that is not a socket (%s); remove it", info.Mode().Type())
	}
	conn, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("%w: %s answers on it; stop it first", ErrInUse, owner(conn)), conn.Close())
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		// A full backlog, or a socket of another type: somebody has it open.
		return fmt.Errorf("%w: somebody holds it who does not answer (%w); stop that process first", ErrInUse, err)
	}
}

// owner names the process at the other end.
func owner(conn net.Conn) string {
	if peer, err := peercred.Of(conn); err == nil {
		return fmt.Sprintf("another crinetd or other process (pid %d, uid %d)", peer.Pid, peer.Uid)
	}
	return "another crinetd or other process"
}

// bind makes the socket under a temporary name and renames it to path. The caller
// holds the folder's lock, so a file of the temporary name is left of a crash.
func bind(ctx context.Context, path string) (*listener, error) {
	temporary := temporaryName(path)
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing what a crash left: %w", err)
	}
	// bind(2) makes the file with the mode of the socket itself.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		controlErr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), mode) })
		return errors.Join(controlErr, err)
	}}
	made, err := config.Listen(ctx, "unix", temporary)
	if err != nil {
		return nil, err
	}
	l, ok := made.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listening gave a %T", made), made.Close())
	}
	l.SetUnlinkOnClose(false) // it knows the temporary name only
	info, err := publish(temporary, path)
	if err != nil {
		return nil, errors.Join(err, l.Close(), ignoreMissing(os.Remove(temporary)))
	}
	return &listener{UnixListener: l, path: path, file: info}, nil
}

// publish sets the socket's mode, whatever the umask, and then gives it its name.
func publish(temporary, path string) (fs.FileInfo, error) {
	if err := os.Chmod(temporary, mode); err != nil {
		return nil, err
	}
	info, err := os.Lstat(temporary)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(temporary, path)
}

// temporaryName differs from path in the last byte, so that it is not longer.
func temporaryName(path string) string {
	last := len(path) - 1
	if path[last] == '~' {
		return path[:last] + "#"
	}
	return path[:last] + "~"
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
