package pluginexec

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What a plugin has printed is read however late the reader comes, also while a
// helper holds the pipe open.
func TestOutputIsReadHoweverLate(t *testing.T) {
	const grace = 10 * time.Millisecond
	to := &head{limit: 100}
	o, err := newOutput(to)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(o.w.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	helper := os.NewFile(uintptr(fd), "helper")
	defer helper.Close()
	to.mu.Lock() // the reader gets no further than its first bytes
	if _, err := helper.WriteString("one "); err != nil {
		t.Fatal(err)
	}
	o.read()
	if _, err := helper.WriteString("two"); err != nil {
		t.Fatal(err)
	}
	finished := make(chan struct{})
	go func() { defer close(finished); o.finish(grace) }()
	time.Sleep(5 * grace)
	to.mu.Unlock()
	<-finished
	if got := string(to.bytes()); got != "one two" {
		t.Errorf("read %q, want all", got)
	}
}
