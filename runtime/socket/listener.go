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

	"github.com/crinet-project/crinet/internal/peercred"
)

// listener accepts connections of the allowed users only.
type listener struct {
	*net.UnixListener
	path  string
	file  fs.FileInfo // of the socket, to know it again
	log   *slog.Logger
	allow []uint32
	once  sync.Once
	err   error // of Close
}

// Accept returns the next connection of an allowed user.
func (l *listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.UnixListener.Accept()
		if err != nil {
			return nil, err
		}
		peer, err := peercred.Of(conn)
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

// Addr returns the path to which callers connect.
func (l *listener) Addr() net.Addr {
	return &net.UnixAddr{Name: l.path, Net: "unix"}
}

// Close ends Accept and removes the path if it is still this listener's.
func (l *listener) Close() error {
	l.once.Do(func() { l.err = l.close() })
	return l.err
}

func (l *listener) close() error {
	// The lock keeps other crinetds from taking the path between the look and the
	// removal. The listener is still open, so that its inode is not reused.
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
