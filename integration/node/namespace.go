package node

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// namespace is an open namespace. It may be entered while it is closed: a client's
// transport goes on dialing after the request that it dialed for has ended.
type namespace struct {
	*os.File
	mu sync.RWMutex // held to close it
}

func openNamespace(path string) (*namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &namespace{File: file}, nil
}

// again opens the namespace once more.
func (n *namespace) again() (*namespace, error) {
	fd, err := unix.FcntlInt(n.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &namespace{File: os.NewFile(uintptr(fd), "namespace")}, nil
}

// enter moves the thread into the namespace, which is of a kind such as CLONE_NEWNET.
func (n *namespace) enter(kind int) error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return unix.Setns(int(n.Fd()), kind)
}

func (n *namespace) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.File.Close()
}
