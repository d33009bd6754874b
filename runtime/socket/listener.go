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
	"sync"

	"golang.org/x/sys/unix"
)

// listener accepts connections of known users only.
type listener struct {
	*net.UnixListener
	path  string
	file  fs.FileInfo // of the socket, to know it again
	log   *slog.Logger
	allow []uint32
	once  sync.Once
	err   error // of Close
}

// Accept returns the next connection of a user that may connect.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.UnixListener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(conn)
		if err == nil && slices.Contains(l.allow, peer.Uid) {
			return conn, nil
		}
		closeErr := conn.Close()
		if err != nil {
			l.log.Warn("refused a connection: the kernel does not say whose it is", "error", errors.Join(err, closeErr))
			continue
		}
		l.log.Warn("refused a connection: this user may not connect", "pid", peer.Pid, "uid", peer.Uid)
	}
}

// Addr is the path that callers connect to.
func (l *listener) Addr() net.Addr {
	return &net.UnixAddr{Name: l.path, Net: "unix"}
}

// Close ends Accept and removes the path if it is still this listener's.
func (l *listener) Close() error {
	l.once.Do(func() { l.err = l.close() })
	return l.err
}

func (l *listener) close() error {
	// Between the look and the removal no other crinetd may take the path. The
	// listener is open meanwhile, so the kernel keeps its inode from reuse.
	unlock, err := lockDir(context.Background(), filepath.Dir(l.path))
	if err == nil {
		defer unlock()
		err = l.remove()
	}
	err = errors.Join(ignoreMissing(err), l.UnixListener.Close())
	if err != nil {
		return fmt.Errorf("closing socket %s: %w", l.path, err)
	}
	return nil
}

func (l *listener) remove() error {
	info, err := os.Lstat(l.path)
	if err != nil || !os.SameFile(info, l.file) {
		return err
	}
	return os.Remove(l.path)
}

// peerOf asks the kernel who connected (SO_PEERCRED).
func peerOf(conn net.Conn) (*unix.Ucred, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%T is not a unix connection", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		peer, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	return peer, nil
}
