package engine

import (
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// manyFailures is how many ADDs must fail in a row before that counts as the
// network's fault and not that of single pods.
const manyFailures = 3

// maxNotice bounds an error in a notice, which becomes the message of a
// Kubernetes condition, in characters.
const maxNotice = 512

// addFailures counts the ADDs that failed since the last one that succeeded. A
// network without the verb STATUS cannot say otherwise that it serves nobody.
type addFailures struct {
	limit int // from so many on, pods are refused (--cni-failed-adds-not-ready); 0: never

	mu      sync.Mutex // guards what follows
	network string
	count   int
	since   time.Time // when the first of them failed
	last    error
	tried   time.Time // when the last trial failed; zero before the first
}

// note takes the outcome of one pod's ADD, or of a trial that succeeded. Another
// network begins anew.
func (f *addFailures) note(network string, err error, now time.Time, log *slog.Logger) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil || f.network != network {
		if f.count >= manyFailures || f.refuses() {
			log.Info("pods get their network again, or by another network", "network", network, "failedADDs", f.count)
		}
		f.network, f.count, f.last, f.tried = network, 0, nil, time.Time{}
	}
	if err == nil {
		return
	}
	if f.count++; f.count == 1 {
		f.since = now
	}
	f.last = err
	if f.count == manyFailures {
		log.Error("no pod gets its network, although the network counts as ready", "network", network, "failedADDs", f.count, "err", err)
	}
	if f.count == f.limit {
		log.Error("new pods are refused until a trial of the network succeeds", "network", network, "failedADDs", f.count, "err", err)
	}
}

// tryFailed takes the failure of a trial. It is no pod's, and does not count.
func (f *addFailures) tryFailed(err error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count > 0 {
		f.last, f.tried = err, now
	}
}

// refuses says whether the failures are as many as the limit. The caller holds
// the lock.
func (f *addFailures) refuses() bool { return f.limit > 0 && f.count >= f.limit }

// refusal says why pods are refused that are to be added to a network; nil if
// they are not.
func (f *addFailures) refusal(network string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.refuses() || f.network != network {
		return nil
	}
	tried := "has not ended a trial yet"
	if !f.tried.IsZero() {
		tried = "tried last at " + f.tried.Format(time.RFC3339)
	}
	return fmt.Errorf("%s. New pods are refused until crinetd has added and removed an attachment of its own, which it tries again and again (%s)",
		f.told(), tried)
}

// inARow is how many ADDs failed since the last one that succeeded.
func (f *addFailures) inARow() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// notice says that ADD fails for every pod; empty if it does not.
func (f *addFailures) notice() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count < manyFailures {
		return ""
	}
	return f.told()
}

// told describes the failures. The caller holds the lock.
func (f *addFailures) told() string {
	return fmt.Sprintf("the last %d ADDs of network %s failed, since %s; the newest: %.*s",
		f.count, f.network, f.since.Format(time.RFC3339), maxNotice, f.last.Error())
}

// AddFailures is how many ADDs of the selected network failed since the last one
// that succeeded.
func (e *Engine) AddFailures() int { return e.failures.inARow() }

// Notice is what an operator should know although new pods are admitted: no pod
// has got its network for a while. Empty if there is nothing. It answers from
// memory.
func (e *Engine) Notice() string { return e.failures.notice() }
