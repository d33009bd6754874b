package socket

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/activation"
)

// ActivationName is the FileDescriptorName of crinetd's sockets.
const ActivationName = "crinet"

// Activated returns the listening sockets that the service manager has passed to
// this process, by their paths; none if it did not start the process
// (sd_listen_fds(3)). They were made by the service manager, which holds them over
// a restart: what connects meanwhile waits in their queues, and Close leaves their
// paths alone. All sockets of one socket unit have one name, which must be
// ActivationName; the path says which is which. A process must call this once.
func Activated(log *slog.Logger) (map[string]net.Listener, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	found := make(map[string]net.Listener)
	var errs []error
	for _, file := range activation.Files(true) {
		l, err := adopt(file, log)
		if err != nil {
			errs = append(errs, fmt.Errorf("socket passed by the service manager as %q: %w", file.Name(), err))
			continue
		}
		found[l.path] = l
	}
	if err := errors.Join(errs...); err != nil {
		for _, l := range found {
			err = errors.Join(err, l.Close())
		}
		return nil, err
	}
	return found, nil
}

// adopt makes a listener of a file, which it closes.
func adopt(file *os.File, log *slog.Logger) (*adopted, error) {
	if file.Name() != ActivationName {
		return nil, errors.Join(fmt.Errorf("want FileDescriptorName=%s in its socket unit", ActivationName), file.Close())
	}
	made, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	l, ok := made.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("it is a %s socket, want a unix stream socket", made.Addr().Network()), made.Close())
	}
	path := l.Addr().String()
	if !filepath.IsAbs(path) {
		return nil, errors.Join(fmt.Errorf("it listens on %q, want an absolute path", path), l.Close())
	}
	return &adopted{&listener{
		UnixListener: l, path: path, log: log.With("socket", path), allow: []uint32{0, uint32(os.Geteuid())},
	}}, nil
}

// adopted is a listener whose path belongs to the service manager.
type adopted struct{ *listener }

// Close ends Accept in this process.
func (l *adopted) Close() error { return l.UnixListener.Close() }
