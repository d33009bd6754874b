// Package testkit has what the tests of several packages need: root, waiting for a
// condition, and a log that is read while it is written.
package testkit

import (
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// Patience is how long Eventually waits: far longer than anything takes, also on a machine
// that has much else to do.
const Patience = 20 * time.Second

// Eventually waits until a condition holds, and fails the test if it does not. It must be
// called by the test's goroutine.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v: %s", Patience, what)
		}
	}
}

// NeedRoot skips the test where there is no root, or fails it where
// CRINET_TEST_REQUIRE_ALL is set.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CRINET_TEST_REQUIRE_ALL") != "" {
		t.Fatal("the test needs root")
	}
	t.Skip("the test needs root")
}

// Log is a text that may be read while it is written. The zero value is empty.
type Log struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write appends.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what has been written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
