// Package drain ends servers: what is under way gets a grace, and then is cut
// off.
package drain

import "time"

// Wait waits until wait returns. After the grace it calls cut, which must make
// wait return, and waits for the time last more. It reports whether wait has
// returned. wait and cut each run on a goroutine of their own.
func Wait(wait func(), grace time.Duration, cut func(), last time.Duration) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	}
	go cut()
	timer.Reset(last)
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}
