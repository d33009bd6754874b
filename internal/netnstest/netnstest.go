// Package netnstest makes network namespaces for tests.
package netnstest

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/testkit"
)

// New makes an empty network namespace that ends with the test. Without root the test is
// skipped, or fails where CRINET_TEST_REQUIRE_ALL is set.
func New(t testing.TB) *os.File {
	t.Helper()
	testkit.NeedRoot(t)
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.err != nil {
		t.Fatalf("make a network namespace: %v", r.err)
	}
	t.Cleanup(func() { _ = r.file.Close() }) // it may be closed already
	return r.file
}
