package inspect

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const netlinkRoute = unix.NETLINK_ROUTE

// checkNetNS says whether the sandbox's namespace is there.
func (i *inspection) checkNetNS() bool {
	have := ""
	var fs unix.Statfs_t
	switch err := unix.Statfs(i.netns, &fs); {
	case i.netns == "":
		have = "no path: the namespace is gone"
	case err != nil:
		have = err.Error()
	case fs.Type != unix.NSFS_MAGIC:
		have = "a file that is no network namespace"
	}
	return i.check(PartNetNS, i.netns, have, remake)
}

// handleIn opens a netlink socket in a namespace. It does so on a thread that goes
// back, or ends with its goroutine if it cannot.
func handleIn(path string) (handle *netlink.Handle, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, openErr := os.Open("/proc/thread-self/ns/net")
		if openErr != nil {
			runtime.UnlockOSThread()
			err = openErr
			return
		}
		defer home.Close()
		if err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			return
		}
		handle, err = netlink.NewHandle(netlinkRoute)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket in %s: %w", path, err)
	}
	return handle, nil
}

// inside is a command line that runs a command in the sandbox's namespace.
func (i *inspection) inside(command string) string {
	return fmt.Sprintf("nsenter --net=%q %s", i.netns, command)
}
