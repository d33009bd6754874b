package drift

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// checkPatience bounds a CHECK: a DEL of the same sandbox waits for it.
	checkPatience = 10 * time.Second
	// checkAgain is the time from a CHECK that failed to the second one, checkSoon the time
	// between CHECKs of a pod whose CHECK fails.
	checkAgain, checkSoon = time.Second, time.Minute
	// maxSaid bounds what a CHECK says, in bytes.
	maxSaid = 512
)

// answer is what a CHECK said.
type answer struct {
	key  journal.Key
	held bool
	said error
}

// ask has the CHECK of one pod run, if one is due and none runs.
func (w *Watcher) ask(now time.Time) {
	if w.CheckInterval == 0 || w.checking {
		return
	}
	var next *pod
	for _, p := range w.pods {
		if !p.checkDue.After(now) && (next == nil || p.checkDue.Before(next.checkDue)) {
			next = p
		}
	}
	if next != nil {
		w.checking = true
		w.asked <- next.record.Key() // nobody else sends: there is room
	}
}

// runChecks runs CHECKs, one at a time, beside the looks.
func (w *Watcher) runChecks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case key := <-w.asked:
			a := answer{key: key}
			bounded, cancel := context.WithTimeout(ctx, checkPatience)
			var err error
			a.held, a.said, err = w.Engine.CheckHeld(bounded, key)
			a.held = a.held && err == nil && bounded.Err() == nil
			cancel()
			select {
			case w.answered <- a:
			case <-ctx.Done():
				return
			}
		}
	}
}

// take takes what a CHECK said.
func (w *Watcher) take(a answer) {
	w.checking = false
	if a.held {
		w.Metrics.checks.Inc()
	}
	p := w.pods[a.key]
	if p == nil {
		return
	}
	now := w.now()
	p.checkDue = now.Add(w.CheckInterval)
	before := p.said != nil
	switch {
	case !a.held || a.said != nil && !tells(a.said):
		p.checkDue = now.Add(min(checkSoon, w.CheckInterval))
		return
	case a.said == nil:
		p.passed, p.failed, p.said = true, false, nil
	case !p.passed:
		w.Metrics.checkErrors.Inc()
		if !p.never {
			p.never = true
			w.Log.Info("CHECK fails for a pod for which it has never passed: it says nothing about drift", "pod", p.record.Pod, "err", a.said)
		}
		return
	case !p.failed:
		w.Metrics.checkErrors.Inc()
		p.failed, p.checkDue = true, now.Add(checkAgain)
		return
	default:
		w.Metrics.checkErrors.Inc()
		p.checkDue = now.Add(min(checkSoon, w.CheckInterval))
		p.said = &inspect.Finding{
			Part: PartCheck, Want: fmt.Sprintf("network %q as its plugins made it", p.record.Attachment.Network), Have: bounded(a.said.Error()),
			Mend: "see what the plugin says; if it cannot be mended, delete the pod: its controller makes a new one, with a new network",
		}
	}
	if before != (p.said != nil) {
		w.tell(p)
	}
}

// tells says whether the error of a CHECK is about the pod: a plugin that could not be
// run, did not come to an end, or does not know the verb says nothing.
func tells(err error) bool {
	var said *wire.Error
	silent := []uint{
		wire.CodeIncompatibleVersion, wire.CodeUnknownContainer, wire.CodeInvalidEnvironment, wire.CodeIO, wire.CodeDecode,
		wire.CodeInvalidConfig, wire.CodeTryAgainLater,
	}
	return errors.As(err, &said) && !slices.Contains(silent, said.Code) &&
		!errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

func bounded(text string) string {
	if len(text) > maxSaid {
		text = strings.ToValidUTF8(text[:maxSaid], "") + " …"
	}
	return text
}
