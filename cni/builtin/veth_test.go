package builtin

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/testkit"
)

// A name that is taken on the node is no failure; one that is taken in the sandbox is.
func TestNameCollisions(t *testing.T) {
	testkit.NeedRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		collide(t)
	}()
	<-done
}

func collide(t *testing.T) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil { // the sandbox
		t.Error(err)
		return
	}
	pod, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Error(err)
		return
	}
	defer pod.Close()
	box, err := openSandbox(path(pod), nil)
	if err != nil {
		t.Error(err)
		return
	}
	defer box.close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil { // the node
		t.Error(err)
		return
	}
	if out, err := exec.Command("ip", "link", "add", "taken", "type", "veth", "peer", "name", "other").CombinedOutput(); err != nil {
		t.Errorf("ip: %v: %s", err, out)
	}
	names := []string{"taken", "taken", "free"}
	next := func() string {
		name := names[0]
		if len(names) > 1 {
			names = names[1:]
		}
		return name
	}
	if name, err := (&veth{ifName: "eth0", name: next}).add(box); err != nil || name != "free" {
		t.Errorf("with names that are taken: %q, %v", name, err)
	}
	if _, err := (&veth{ifName: "eth1", name: func() string { return "taken" }}).add(box); err == nil || !strings.Contains(err.Error(), "no free name") {
		t.Errorf("when all names are taken: %v", err)
	}
	if _, err := (&veth{ifName: "eth0", name: func() string { return "other2" }}).add(box); err == nil || !strings.Contains(err.Error(), "eth0 already") {
		t.Errorf("with the sandbox's name taken: %v", err)
	}
}

func path(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
