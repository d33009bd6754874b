package inspect

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/netnstest"
)

// netns is a network namespace of a test's own.
type netns struct{ file *os.File }

// path is where the namespace is found by who looks from this process.
func (ns netns) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd()) }

// newNetNS makes an empty namespace. It ends with the test.
func newNetNS(t *testing.T) netns {
	t.Helper()
	return netns{netnstest.New(t)}
}

// do runs f on a thread inside the namespace.
func (ns netns) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread is given up rather than brought back
		err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// ip runs commands of ip(8), one a line.
func (ns netns) ip(t *testing.T, commands string) {
	t.Helper()
	ns.do(t, func() error {
		for command := range strings.SplitSeq(strings.TrimSpace(commands), "\n") {
			if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", command, err, out)
			}
		}
		return nil
	})
}

// sysctl writes a sysctl in the namespace.
func (ns netns) sysctl(t *testing.T, key, value string) {
	t.Helper()
	ns.do(t, func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
}

// plug makes a veth pair between the node, as veth0, and the pod, as eth0.
func plug(t *testing.T, node, pod netns) {
	t.Helper()
	node.ip(t, fmt.Sprintf("link add veth0 type veth peer name eth0 netns %s", pod.path()))
	pod.ip(t, "link set lo up\nlink set eth0 up")
	node.ip(t, "link set veth0 up")
}
