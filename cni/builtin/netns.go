package builtin

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni/wire"
)

// errNoNetNS says that a path is no network namespace any more, or never was.
var errNoNetNS = errors.New("no network namespace")

// sandbox is the network namespace of a sandbox, opened.
type sandbox struct {
	path string
	file *os.File
	// link is a netlink socket in the namespace.
	link *netlink.Handle
}

// openSandbox opens a namespace and runs setUp, which may be nil, inside it. The
// error is errNoNetNS if there is none.
func openSandbox(path string, setUp func() error) (*sandbox, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); errors.Is(err, unix.ENOENT) || err == nil && fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("open netns %q: %w", path, errNoNetNS)
	}
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open netns %q: %w", path, errNoNetNS)
	}
	if err != nil {
		return nil, fmt.Errorf("open netns %q: %w", path, err)
	}
	s := &sandbox{path: path, file: file}
	err = s.enter(func() (err error) {
		if s.link, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open a netlink socket in %s: %w", path, err)
		}
		if setUp != nil {
			return setUp()
		}
		return nil
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close closes the socket and the namespace. There is nothing to be done about an
// error: nothing was written to either.
func (s *sandbox) close() {
	if s.link != nil {
		s.link.Close()
	}
	_ = s.file.Close()
}

// enter runs do on a thread that is in the namespace. The thread goes back, and if it
// cannot, it ends with its goroutine, and nothing else ever runs on it.
func (s *sandbox) enter(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter netns %s: %w", s.path, err)
			return
		}
		err = do()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// ownNetNS refuses a namespace that is the node's own, as the reference plugins do.
func ownNetNS(path string) error {
	var own, other unix.Stat_t
	if path == "" || unix.Stat("/proc/thread-self/ns/net", &own) != nil || unix.Stat(path, &other) != nil {
		return nil
	}
	if own.Ino == other.Ino && own.Dev == other.Dev {
		return wire.Errorf(wire.CodeInvalidNetNS, "%s is the node's own network namespace, not a sandbox's", path)
	}
	return nil
}
