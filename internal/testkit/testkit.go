// Package testkit has what the tests of several packages need: waiting for a condition,
// and a log that is read while it is written.
package testkit

import (
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
