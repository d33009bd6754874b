package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/journal"
)

// The wait between two trials doubles from trialFirst to trialMost. trialWake is
// how often crinetd looks whether the failures have become too many.
const (
	trialFirst = time.Second
	trialMost  = 30 * time.Second
	trialWake  = 500 * time.Millisecond
)

// trialEnd bounds the DEL of a trial when crinetd ends. What it does not manage
// stays in the journal.
const trialEnd = 5 * time.Second

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
	key := journal.Key{ContainerID: e.trialName, IfName: defaultIfName}
	call := &Call{
		ContainerID: key.ContainerID, NetNS: e.namespaces.Path(e.trialName), IfName: key.IfName,
		Pod: journal.Pod{Namespace: "crinet", Name: "trial", UID: e.trialName}, // no pod's
	}
	unlock, err := e.locks.lock(ctx, key, "ADD")
	if err != nil {
		return nil, err
	}
	defer unlock()
	_, leave := e.flights.join(e, call)
	defer func() { leave(); e.flights.settle(key) }()
	if earlier, err := e.journal.Get(key); err != nil {
		return nil, err
	} else if earlier != nil {
		if err := e.detach(ctx, earlier); err != nil {
			return nil, fmt.Errorf("the trial before this one: %w", err)
		}
	}
	record, err := e.planTrial(call)
	if err != nil {
		return nil, err
	}
	trial := &Trial{Network: record.Attachment.Network}
	ctx, recorded := e.record(askedBy(ctx, byTrial), "ADD", record)
	start := e.now()
	addErr := e.addTrial(ctx, record)
	trial.Add, trial.Addresses = e.now().Sub(start), Addresses(record)
	start = e.now()
	delErr := e.endTrial(ctx, record)
	trial.Del = e.now().Sub(start)
	err = errors.Join(addErr, delErr)
	recorded(record, nil, err)
	return trial, err
}

// planTrial plans a trial's attachment and journals it.
func (e *Engine) planTrial(call *Call) (*journal.Record, error) {
	capabilities, err := e.capabilityArgs(call, false)
	if err != nil {
		return nil, err
	}
	attachment, err := e.selected.Plan(cni.Attachment{
		ContainerID: call.ContainerID, NetNS: call.NetNS, IfName: call.IfName, CapabilityArgs: capabilities,
	})
	if err != nil {
		return nil, fmt.Errorf("network not ready: %w", err)
	}
	record := &journal.Record{
		State: journal.Attaching, Plugin: e.selected.Name(), Trial: true, Attachment: *attachment,
		Pod: call.Pod, BootID: e.bootID, Created: e.now().UTC(),
	}
	if record.Attachment.Note, err = note(record); err != nil {
		return nil, err
	}
	return record, e.journal.PutDurable(record) // as for a pod, see plan
}

// addTrial makes the namespace and runs ADD.
func (e *Engine) addTrial(ctx context.Context, r *journal.Record) error {
	if err := e.namespaces.Make(r.Attachment.ContainerID); err != nil {
		return err
	}
	leave, err := e.gates.enter(ctx, r.Attachment.Network)
	if err != nil {
		return err
	}
	defer leave()
	r.Attachment.Result, err = e.selected.SetUpPod(ctx, &r.Attachment)
	return err
}

// endTrial undoes a trial, also when ADD has failed or crinetd is about to end.
func (e *Engine) endTrial(ctx context.Context, r *journal.Record) error {
	undo := context.WithoutCancel(ctx)
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		undo, cancel = context.WithTimeout(undo, trialEnd)
		defer cancel()
	}
	return e.detach(undo, r)
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
