package nettest

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Space is a network namespace. Its methods may be called concurrently until Close.
type Space struct{ file *os.File }

// NewSpace takes over an open network namespace.
func NewSpace(file *os.File) *Space { return &Space{file} }

// Here is the network namespace of this process.
func Here() (*Space, error) {
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	return &Space{file}, nil
}

// Close gives the namespace up.
func (s *Space) Close() error { return s.file.Close() }

func (s *Space) fd() int { return int(s.file.Fd()) }

// Do runs f on a thread in the namespace. Sockets that f opens stay in it. f must not
// hand its work to other goroutines.
func (s *Space) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(s.fd(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
