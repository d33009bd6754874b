package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/crinet-project/crinet/cni/wire"
)

// An ADD that fails for a reason that passes is tried again in place: DEL and ADD in the
// same namespace, as long as the caller waits. The runtime would tear the whole sandbox
// down for it and the kubelet would wait longer each time, so that one busy moment of a
// network's agent costs pods many minutes (cilium/cilium#45103, #25805).

// leastRetry is the least time that a caller must have left for another ADD.
const leastRetry = time.Second

// removalPoll is how often removals that are not in the lane of DEL are looked at.
const removalPoll = 500 * time.Millisecond

// noAddresses is how host-local, and IPAM plugins made after it, say that all addresses
// are taken.
const noAddresses = "no IP addresses available"

// attempt is the series of ADDs of one pod.
type attempt struct {
	plugin *Plugin
	turn   *turn
	end    time.Time // no ADD begins later
	tries  int
	begun  time.Time     // when the last ADD's chain began
	took   time.Duration // how long it ran
	last   error         // what it failed with
}

func (p *Plugin) newAttempt(ctx context.Context, a *Attachment) *attempt {
	end := time.Now().Add(p.config.Timeout)
	if deadline, ok := ctx.Deadline(); ok {
		end = deadline
	}
	return &attempt{plugin: p, turn: p.add.turn(a.First), end: end}
}

// SetUpPod runs ADD over the chain and returns its result, in the list's CNI
// version. An ADD that fails for a reason that passes ([Config.Passing]), or for want
// of addresses while pods are being removed, is undone and tried again as long as the
// caller waits; without a deadline until Config.Timeout. After an error part of the
// chain may have been added: the caller calls TearDownPod, as the CNI spec asks
// (section 3, "Attachment"). If ctx has a deadline, a plugin that hangs is ended
// shortly before it.
func (p *Plugin) SetUpPod(ctx context.Context, a *Attachment) (json.RawMessage, error) {
	t := p.newAttempt(ctx, a)
	for {
		result, err := t.add(ctx, a)
		if err == nil {
			p.add.worked(t.took)
			return result, nil
		}
		if !t.again(ctx, err) {
			return nil, t.failure(err)
		}
		p.retries.Add(1)
		if err := p.TearDownPod(ctx, a); err != nil {
			return nil, errors.Join(t.failure(t.last), err)
		}
	}
}

// add runs ADD once.
func (t *attempt) add(ctx context.Context, a *Attachment) (result json.RawMessage, err error) {
	p := t.plugin
	began := false
	err = p.run(ctx, p.add, t.turn, a, func(ctx context.Context, list *libcni.NetworkConfigList) error {
		began, t.begun = true, time.Now()
		defer func() { t.took = time.Since(t.begun) }()
		added, err := p.libcniFor(a).AddNetworkList(ctx, list, a.runtimeConf())
		if err != nil {
			return err
		}
		if added == nil {
			return errors.New("no plugin of the chain returned a result")
		}
		result, err = json.Marshal(added)
		return err
	})
	if began {
		t.tries++
		t.last = err
	}
	return result, err
}

// again says whether ADD is tried again, and waits where that is known to help.
func (t *attempt) again(ctx context.Context, err error) bool {
	if t.tries == 0 || err != t.last { //nolint:errorlint // whether this is the chain's error, and not the lane's
		return false
	}
	switch {
	case !t.hasTime(ctx):
		return false
	case t.plugin.passes(err):
		t.plugin.add.refused()
		return true
	case strings.Contains(err.Error(), noAddresses):
		return t.awaitRemoval(ctx)
	}
	return false
}

// hasTime says whether the caller waits for another ADD that takes as long as the last.
func (t *attempt) hasTime(ctx context.Context) bool {
	return ctx.Err() == nil && time.Until(t.end) > max(2*t.took, leastRetry)
}

// awaitRemoval waits for an address: until a DEL has ended that ran when the ADD failed.
// It returns false if no pod is being removed.
func (t *attempt) awaitRemoval(ctx context.Context) bool {
	ended, running := t.plugin.del.next()
	if removed := t.plugin.del.since(t.begun); removed {
		return true
	}
	if running == 0 && t.plugin.removals() == 0 {
		return false
	}
	timer := time.NewTimer(removalPoll)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	case <-ctx.Done():
	}
	return t.hasTime(ctx)
}

// failure is the error of the whole series.
func (t *attempt) failure(err error) error {
	if t.last != nil && err != t.last { //nolint:errorlint // as in again
		err = fmt.Errorf("%w; the last try failed: %w", err, t.last)
	}
	if t.tries > 1 {
		err = fmt.Errorf("%w (crinetd tried %d times)", err, t.tries)
	}
	return err
}

// passes says whether an error of ADD is one that passes.
func (p *Plugin) passes(err error) bool {
	var coded *wire.Error
	errors.As(err, &coded)
	return slices.ContainsFunc(p.config.Passing, func(passing string) bool {
		code, notCode := strconv.ParseUint(passing, 10, 0)
		if notCode != nil {
			return strings.Contains(err.Error(), passing)
		}
		return coded != nil && uint64(coded.Code) == code
	})
}

func (p *Plugin) removals() int {
	if p.config.Removals == nil {
		return 0
	}
	return p.config.Removals()
}

// Removing says whether the DEL of an attachment runs or waits for its turn, however
// long it takes.
func (p *Plugin) Removing() bool { return p.removing.Load() > 0 }

// Pressure is how busy ADD is, and how often it was tried again since the start.
func (p *Plugin) Pressure() (load Load, retries uint64) { return p.add.load(), p.retries.Load() }
