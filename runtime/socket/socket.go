// Package socket opens the unix sockets that crinetd serves on.
//
// A socket appears under its path in one step, with mode 0600 from the first
// instant, in place of one that a dead process left. Where a live process
// answers, [Listen] refuses. Callers are known by the kernel's word
// (SO_PEERCRED, unix(7)) and must be root, crinetd's own user, or a user that
// was named.
//
// A listener lives until Close, which removes the path unless it belongs to
// somebody else by then. A crash leaves the file; the next Listen replaces it.
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
)

const (
	// maxPath is what fits into sockaddr_un with its final NUL (unix(7)).
	maxPath = 107
	// mode of the socket: connecting takes the right to write.
	mode = 0o600
	// patience bounds the wait for a socket's answer and for the folder's lock.
	patience = 2 * time.Second
	// lockPoll is the time between two tries for the folder's lock.
	lockPoll = 10 * time.Millisecond
)

// ErrInUse is in the error of Listen when a live process serves on the path.
var ErrInUse = errors.New("socket is in use")

// Listen serves on the unix socket at path, whose folder must exist. Besides
// root and the process's effective user, the users in allow may connect; the
// connections of all others are closed and logged. Nil log discards.
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

// lockDir keeps other crinetd processes out of the folder's sockets. The lock
// is on the folder itself: it leaves no file and ends with the process.
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
			return func() { _ = f.Close() }, nil // read only: nothing to lose
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

// checkFree returns nil where nothing is, or a socket that nobody serves.
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
		// A full backlog, another type of socket: there is somebody.
		return fmt.Errorf("%w: somebody holds it who does not answer (%w); stop that process first", ErrInUse, err)
	}
}

// owner names the process at the other end.
func owner(conn net.Conn) string {
	if peer, err := peerOf(conn); err == nil {
		return fmt.Sprintf("another crinetd or other process (pid %d, uid %d)", peer.Pid, peer.Uid)
	}
	return "another crinetd or other process"
}

// bind makes the socket under a temporary name and moves it onto path. The
// folder's lock makes that name ours; what is there was left by a crash.
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

// publish gives the socket its mode whatever the umask, then its name.
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

// temporaryName differs from path in its last byte: it is as short.
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
