package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

// The wait between two trials doubles from trialFirst to trialMost. trialWake is
// how often crinetd looks whether the failures have become too many.
const (
	trialFirst = time.Second
	trialMost  = 30 * time.Second
	trialWake  = 500 * time.Millisecond
)

// Trial is what an attachment of crinetd's own has shown of the network.
type Trial struct {
	Network   string
	Addresses []string // with prefix lengths
	Add, Del  time.Duration
}

// newTrialName names the trials of this run. IPAM plugins may have one store for
// many nodes, so that the name must not be another node's.
func newTrialName() string { return "crinet-trial-" + rand.Text()[:10] }

// Try adds a network namespace of crinetd's own to the selected network and
// removes it again. Without an error both worked, and failed ADDs before it are
// forgotten. It runs while new pods are refused as well, and one at a time. Like
// any attachment it is journalled before anything is done, and what remains of it
// is undone until that works; the next trial begins when that is done.
func (e *Engine) Try(ctx context.Context) (*Trial, error) {
	trial, err := e.try(ctx)
	if err != nil {
		e.failures.tryFailed(err, e.now())
		return nil, err
	}
	e.failures.note(trial.Network, nil, e.now(), e.log)
	return trial, nil
}

func (e *Engine) try(ctx context.Context) (*Trial, error) {
	select {
	case e.trying <- struct{}{}:
		defer func() { <-e.trying }()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another trial to end: %w", context.Cause(ctx))
	}
	t, err := e.newThrowaway(ctx, e.trialName, "trial", e.selected.Plan, nil)
	if err != nil {
		return nil, err
	}
	start := e.now()
	addErr := t.add(ctx)
	trial := &Trial{Add: e.now().Sub(start)}
	if t.record != nil {
		trial.Network, trial.Addresses = t.record.Attachment.Network, Addresses(t.record)
	}
	start = e.now()
	delErr := t.end(ctx)
	trial.Del = e.now().Sub(start)
	return trial, errors.Join(addErr, delErr)
}

// runTrials tries the network while its failures have new pods refused, until
// ctx ends.
func (e *Engine) runTrials(ctx context.Context) {
	if e.failures.limit <= 0 {
		return
	}
	waits := backoff.Backoff{First: trialFirst, Max: trialMost, Jitter: 0.25}
	for wait := trialWake; backoff.Sleep(ctx, wait); {
		network := e.network()
		if network == "" || e.failures.refusal(network) == nil {
			waits.Reset()
			wait = trialWake
			continue
		}
		if _, err := e.Try(ctx); err != nil {
			wait = waits.Next()
			e.log.Warn("a trial of the network failed; crinetd tries again", "network", network, "next", wait, "err", err)
		}
	}
}
