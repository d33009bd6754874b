package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// statusInterval is the time from one STATUS to the next: the kubelet asks
	// the runtime for its Status as often.
	statusInterval = 5 * time.Second
	// statusRetry is that time while STATUS fails.
	statusRetry = 2 * time.Second
	// statusFirst is that time until it succeeds for the first time.
	statusFirst = 500 * time.Millisecond
)

// StatusReport is what STATUS has answered for the selected network.
type StatusReport struct {
	// Network is the network's name. It is empty if no network is asked: none
	// is selected, or the selected one is older than CNI 1.1.0.
	Network string
	// FailingSince is when the first of the failures came that go on until now;
	// zero if the last answer was good, or there is none yet.
	FailingSince time.Time
	// Err is the last answer; nil if it was good, or there is none yet.
	Err error
	// NotReady is set if Err counts: pods are refused.
	NotReady bool

	good bool // there was a good answer since the network was selected
}

// statusWatch is the state of RunStatus, which alone writes it.
type statusWatch struct {
	changed  chan struct{} // holds one: the selection may have changed
	last     atomic.Pointer[StatusReport]
	began    time.Time
	asked    atomic.Uint64
	underWay atomic.Bool
	failed   atomic.Uint64
	every    time.Duration // statusInterval
	retry    time.Duration // statusRetry
	first    time.Duration // statusFirst
	now      func() time.Time
}

func newStatusWatch() *statusWatch {
	w := &statusWatch{changed: make(chan struct{}, 1), every: statusInterval, retry: statusRetry, first: statusFirst, now: time.Now, began: time.Now()}
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

// StatusUnderWay reports whether STATUS is being run now.
func (p *Plugin) StatusUnderWay() bool { return p.status.underWay.Load() }

// RunStatus runs the STATUS verb of the selected network in intervals, and of a
// newly selected one at once, until ctx ends. It runs one STATUS at a time, for
// Config.Timeout at most.
//
// A network that has not answered yet counts as ready, so that a restart of
// crinetd does not make the node flap; after a boot it does not (Config.AwaitStatus). The first answer counts, and so does each
// good one. After a good one, failures count once they have gone on for
// Config.StatusGrace.
func (p *Plugin) RunStatus(ctx context.Context) {
	for ctx.Err() == nil {
		network := p.statusNetwork()
		askCtx, cancel := context.WithCancel(ctx)
		var asking sync.WaitGroup
		asking.Go(func() { p.askStatus(askCtx, network) })
		for ctx.Err() == nil && sameNetwork(network, p.statusNetwork()) {
			select {
			case <-ctx.Done():
			case <-p.status.changed:
			case <-time.After(p.status.every):
			}
		}
		cancel() // kills a plugin that runs
		asking.Wait()
	}
}

// askStatus runs a network's STATUS in intervals until ctx ends.
func (p *Plugin) askStatus(ctx context.Context, network *config.Network) {
	if network == nil {
		p.status.last.Store(&StatusReport{})
		return
	}
	for {
		p.status.underWay.Store(true)
		err := p.NetworkStatus(ctx, network)
		p.status.underWay.Store(false)
		if ctx.Err() != nil {
			return // nothing was answered
		}
		wait := p.status.every
		p.judge(network.Name, err)
		p.status.asked.Add(1) // what it says counts by now
		if err != nil {
			p.status.failed.Add(1)
			if wait = p.status.retry; !p.status.last.Load().good {
				wait = p.status.first
			}
		}
		if !backoff.Sleep(ctx, wait) {
			return
		}
	}
}

// statusNetwork returns the network to ask, or nil.
func (p *Plugin) statusNetwork() *config.Network {
	network, err := p.network()
	if err != nil || !atLeast(network.CNIVersion, "1.1.0") {
		return nil
	}
	return network
}

// sameNetwork reports whether two networks, of different snapshots, are the same.
func sameNetwork(a, b *config.Network) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Name == b.Name && bytes.Equal(a.ConfList, b.ConfList)
}

// judge keeps a report of an answer and logs what is new in it.
func (p *Plugin) judge(network string, answer error) {
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
		return
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
}

// statusError returns why a network is not ready by its STATUS, or nil.
func (p *Plugin) statusError(network *config.Network) error {
	awaited := p.statusAwaited(network) // before the report: an answer is either there or awaited
	report := p.status.last.Load()
	switch {
	case report.Network == network.Name && report.NotReady:
		return fmt.Errorf("waiting for the network's STATUS since %s: %w", report.FailingSince.Format(time.TimeOnly), report.Err)
	case awaited:
		return fmt.Errorf("waiting for the first answer of network %q to STATUS since %s", network.Name, p.status.began.Format(time.TimeOnly))
	default:
		return nil
	}
}

// statusAwaited says whether a network has to answer STATUS before it is ready, and
// nobody has answered yet.
func (p *Plugin) statusAwaited(network *config.Network) bool {
	return p.config.AwaitStatus && p.status.asked.Load() == 0 && atLeast(network.CNIVersion, "1.1.0")
}

// StatusWaits returns since when the selected network is not ready by its STATUS; zero
// if it is ready.
func (p *Plugin) StatusWaits() time.Time {
	network, err := p.network()
	if err != nil || p.statusError(network) == nil {
		return time.Time{}
	}
	if since := p.status.last.Load().FailingSince; !since.IsZero() {
		return since
	}
	return p.status.began
}

// explainStatus says what the code of a failed STATUS means (CNI spec 1.1.0,
// section STATUS).
func explainStatus(network string, err error) error {
	if err == nil {
		return nil
	}
	meaning := ""
	var said *wire.Error
	if errors.As(err, &said) {
		switch said.Code {
		case wire.CodeNotAvailable:
			meaning = "no pod can be added (CNI code 50): "
		case wire.CodeLimited:
			meaning = "no pod can be added, and running pods may have limited connectivity (CNI code 51): "
		default:
			meaning = fmt.Sprintf("CNI code %d: ", said.Code)
		}
	}
	return fmt.Errorf("network %q: STATUS: %s%w", network, meaning, err)
}
