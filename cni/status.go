package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/config"
)

const (
	// statusInterval is how often STATUS is run: as often as the kubelet asks
	// the runtime for its Status.
	statusInterval = 5 * time.Second
	// statusRetry is how often while it fails.
	statusRetry = 2 * time.Second
)

// The error codes of STATUS (CNI spec 1.1.0, section STATUS).
const (
	codeNotAvailable = 50 // no ADD can be served
	codeLimited      = 51 // besides, running pods may have limited connectivity
)

// StatusReport is what the STATUS verb has said of the selected network.
type StatusReport struct {
	// Network is the network's name; empty if none is asked, because none is
	// selected or the selected one is older than CNI 1.1.0.
	Network string
	// FailingSince is when the first of the failing answers came; zero if the
	// last answer was good, or there is none yet.
	FailingSince time.Time
	// Err is the last answer; nil if it was good, or there is none yet.
	Err error
	// NotReady says that Err counts: pods are refused.
	NotReady bool

	good bool // there was a good answer since the network was selected
}

// statusWatch is the state of RunStatus. It is written by RunStatus alone.
type statusWatch struct {
	changed chan struct{} // holds one: the selection may have changed
	last    atomic.Pointer[StatusReport]
	asked   atomic.Uint64
	failed  atomic.Uint64
	every   time.Duration // statusInterval
	retry   time.Duration // statusRetry
	now     func() time.Time
}

func newStatusWatch() *statusWatch {
	w := &statusWatch{changed: make(chan struct{}, 1), every: statusInterval, retry: statusRetry, now: time.Now}
	w.last.Store(&StatusReport{})
	return w
}

// SelectionChanged tells RunStatus that another network may be selected. It
// does not wait.
func (p *Plugin) SelectionChanged() {
	select {
	case p.status.changed <- struct{}{}:
	default:
	}
}

// StatusReport returns the last answer, from memory.
func (p *Plugin) StatusReport() StatusReport { return *p.status.last.Load() }

// StatusCounts returns how often STATUS was run since the start, and how often
// it failed.
func (p *Plugin) StatusCounts() (asked, failed uint64) {
	return p.status.asked.Load(), p.status.failed.Load()
}

// RunStatus runs the STATUS verb of the selected network in intervals, and of a
// newly selected one at once, until ctx ends. There is never more than one at
// work, and none works longer than Config.Timeout.
//
// A network that has not answered yet counts as ready: a restart of crinetd
// must not make the node flap. Its first answer counts, and so does each good
// one; after a good one, failing ones count when they go on for
// Config.StatusGrace.
func (p *Plugin) RunStatus(ctx context.Context) {
	for ctx.Err() == nil {
		network := p.statusNetwork()
		wait := p.status.every
		if network == nil {
			p.status.last.Store(&StatusReport{})
		} else {
			answered, err := p.askStatus(ctx, network)
			if !answered {
				continue
			}
			if p.judge(network.Name, err) != nil {
				wait = p.status.retry
			}
		}
		timer := time.NewTimer(wait)
		p.waitForSelection(ctx, network, timer.C)
		timer.Stop()
	}
}

// statusNetwork is the network that can be asked, or nil.
func (p *Plugin) statusNetwork() *config.Network {
	network, err := p.network()
	if err != nil || !atLeast(network.CNIVersion, "1.1.0") {
		return nil
	}
	return network
}

// waitForSelection waits until another network than this is selected, or for
// the timer or the end of ctx.
func (p *Plugin) waitForSelection(ctx context.Context, network *config.Network, timer <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer:
			return
		case <-p.status.changed:
			if !sameNetwork(network, p.statusNetwork()) {
				return
			}
		}
	}
}

// sameNetwork says whether two snapshots' networks are one.
func sameNetwork(a, b *config.Network) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && bytes.Equal(a.ConfList, b.ConfList)
}

// askStatus runs STATUS once. Nothing was answered if the network is not
// selected any more, or ctx has ended.
func (p *Plugin) askStatus(ctx context.Context, network *config.Network) (answered bool, err error) {
	askCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.NetworkStatus(askCtx, network) }()
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				return false, nil
			}
			p.status.asked.Add(1)
			if err != nil {
				p.status.failed.Add(1)
			}
			return true, err
		case <-p.status.changed:
			if !sameNetwork(network, p.statusNetwork()) {
				cancel() // which kills the plugin
				err := <-done
				p.config.Log.Debug("STATUS of a network that is not selected any more was cut off", "network", network.Name, "err", err)
				return false, nil
			}
		}
	}
}

// judge makes a report of an answer, logs what is new in it and returns the
// answer.
func (p *Plugin) judge(network string, answer error) error {
	before := p.status.last.Load()
	if before.Network != network {
		before = &StatusReport{}
	}
	now := p.status.now()
	report := &StatusReport{Network: network, Err: answer, good: before.good || answer == nil}
	log := p.config.Log.With("network", network)
	if answer == nil {
		p.status.last.Store(report)
		if before.Err != nil {
			log.Info("the network's STATUS is good again", "failedFor", now.Sub(before.FailingSince))
		}
		return nil
	}
	report.FailingSince = before.FailingSince
	if before.Err == nil {
		report.FailingSince = now
	}
	report.NotReady = before.NotReady || !before.good || now.Sub(report.FailingSince) >= p.config.StatusGrace
	p.status.last.Store(report)
	switch {
	case report.NotReady && !before.NotReady:
		log.Error("the network is not ready by its STATUS: new pods are refused", "failingSince", report.FailingSince, "err", answer)
	case before.Err == nil:
		log.Warn("the network's STATUS fails; new pods are refused when it goes on", "grace", p.config.StatusGrace, "err", answer)
	case before.Err.Error() != answer.Error():
		log.Warn("the network's STATUS fails in another way", "err", answer)
	}
	return answer
}

// statusError is why a network is not ready by its STATUS; nil if it is ready.
func (p *Plugin) statusError(network string) error {
	report := p.status.last.Load()
	if report.Network != network || !report.NotReady {
		return nil
	}
	return report.Err
}

// explainStatus words a failed STATUS with the meaning of its code.
func explainStatus(network string, err error) error {
	var said *types.Error
	if errors.As(err, &said) {
		switch said.Code {
		case codeNotAvailable:
			return fmt.Errorf("network %q: STATUS: no pod can be added (CNI code 50): %w", network, err)
		case codeLimited:
			return fmt.Errorf("network %q: STATUS: no pod can be added, and running pods may have limited connectivity (CNI code 51): %w", network, err)
		}
		return fmt.Errorf("network %q: STATUS: CNI code %d: %w", network, said.Code, err)
	}
	return fmt.Errorf("network %q: STATUS: %w", network, err)
}
