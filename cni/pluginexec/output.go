package pluginexec

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

// output takes what a plugin prints. os/exec would do that too, but loses what it
// has not read when the plugin's output stays open for longer than its WaitDelay;
// on a busy machine that can be everything.
type output struct {
	to   *head
	r, w *os.File
	done chan struct{} // closed when nobody reads any more
}

// newOutput makes a pipe whose end w is for the plugin.
func newOutput(to *head) (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &output{to: to, r: r, w: w, done: make(chan struct{})}, nil
}

// read reads until all writers have gone, in the background. The plugin has its end
// by now.
func (o *output) read() {
	_ = o.w.Close() // the plugin has a copy
	go func() {
		defer close(o.done)
		_, _ = io.Copy(o.to, o.r) // it ends with the writers, or by finish
	}()
}

// close closes both ends, for a plugin that was not started.
func (o *output) close() {
	_ = o.w.Close()
	_ = o.r.Close()
}

// finish returns when all is read that the plugin has printed, which has ended. A
// process that it left behind and that holds the pipe open is waited for no longer
// than grace.
func (o *output) finish(grace time.Duration) {
	select {
	case <-o.done:
	case <-time.After(grace):
		_ = o.r.SetReadDeadline(time.Now()) // a pipe has deadlines
		<-o.done
		_ = o.r.SetReadDeadline(time.Time{})
		o.drain()
	}
	_ = o.r.Close() // it was only read
}

// drain reads what is in the pipe, without waiting for more.
func (o *output) drain() {
	conn, err := o.r.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10) // as much as a pipe holds
	for left := o.to.limit; left >= 0; {
		n := 0
		err := conn.Read(func(fd uintptr) bool {
			var readErr error
			for n, readErr = syscall.Read(int(fd), buf); errors.Is(readErr, syscall.EINTR); {
				n, readErr = syscall.Read(int(fd), buf)
			}
			return true // with false it would wait for more
		})
		if err != nil || n <= 0 {
			return
		}
		_, _ = o.to.Write(buf[:n]) // it never fails
		left -= n
	}
}
