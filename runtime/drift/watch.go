package drift

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// again is the time from a look that found something to the second one.
	again = 300 * time.Millisecond
	// batch is how many pods are looked at with what was read of the node once.
	batch = 16
	// share is how much longer than a batch the rest after it is at least: looking
	// takes a fifth of one CPU at most, however many pods there are.
	share = 4
	// idle bounds the wait while nothing is due.
	idle = time.Second
	// blind is after how many looks in a row that failed it is told that a pod cannot be
	// looked at.
	blind = 10
	// lockPatience bounds the wait for a sandbox's lock: whoever has it changes the
	// attachment, and it is looked at later. lookPatience bounds a look that holds it.
	lockPatience, lookPatience = 50 * time.Millisecond, 2 * time.Second
	// gather is how long changes on the node are gathered before pods are looked at.
	gather = 20 * time.Millisecond
)

// Run looks for drift until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { w.listen(ctx) })
	parts.Go(func() { w.runChecks(ctx) })
	w.loadRemade()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var rested time.Time // no look before
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-w.changed:
			if w.hurry(name) {
				timer.Reset(max(gather, rested.Sub(w.now())))
			}
			continue
		case a := <-w.answered:
			w.take(a)
			continue
		case <-timer.C:
		}
		rest, wait := w.step(ctx)
		rested = w.now().Add(rest)
		timer.Reset(max(rest, wait))
	}
}

// hurry has the pods looked at now that have an interface, and says whether there are any.
func (w *Watcher) hurry(name string) (any bool) {
	now := w.now()
	for _, key := range w.byLink[name] {
		if p := w.pods[key]; p != nil && p.suspects == nil && p.due.After(now) {
			p.due, any = now, true
		}
	}
	return any
}

// step looks at the pods that are due. It returns how long to rest at least, and how
// long nothing is due.
func (w *Watcher) step(ctx context.Context) (rest, wait time.Duration) {
	began := w.now()
	if !began.Before(w.refreshAt) {
		w.refresh(began)
	}
	due := w.due(began)
	if len(due) > 0 {
		w.look(ctx, due[:min(len(due), batch)])
	}
	w.ask(began)
	w.remake()
	took := w.now().Sub(began)
	w.Metrics.busy.Add(took.Seconds())
	next := began.Add(idle)
	for _, p := range w.pods {
		if p.due.Before(next) {
			next = p.due
		}
	}
	// Looks that are due within the same tenth of a second share what is read.
	return share * took, max(next.Sub(w.now()), min(w.Interval/10, 100*time.Millisecond))
}

// due returns the pods whose look is due, the longest first.
func (w *Watcher) due(now time.Time) []*pod {
	var due []*pod
	for _, p := range w.pods {
		if !p.due.After(now) {
			due = append(due, p)
		}
	}
	slices.SortFunc(due, func(a, b *pod) int { return a.due.Compare(b.due) })
	return due
}

// refresh takes up pods that have come, and drops those that are gone or are not to
// stand any more.
func (w *Watcher) refresh(now time.Time) {
	// A pod that has just come is named within the time as well.
	w.refreshAt = now.Add(w.Interval / 2)
	records, err := w.Engine.Records()
	if err != nil {
		if !w.refused {
			w.Log.Warn("pods are not looked at for drift, since the journal cannot be read", "err", err)
		}
		w.refused = true
		return
	}
	w.refused = false
	seen := make(map[journal.Key]bool, len(records))
	w.byLink = make(map[string][]journal.Key)
	for _, r := range records {
		if r.Trial || !w.Engine.Stands(r) || r.Attachment.NetNS == "" {
			continue
		}
		key := r.Key()
		seen[key] = true
		for _, name := range inspect.HostLinks(r.Attachment.Result) {
			w.byLink[name] = append(w.byLink[name], key)
		}
		if p := w.pods[key]; p != nil {
			if p.record.Created.Equal(r.Created) {
				p.record = r
				continue
			}
			w.drop(key, p)
		}
		w.pods[key] = &pod{record: r, due: now.Add(rand.N(w.Interval / 2)), checkDue: now.Add(w.CheckInterval/10 + rand.N(w.CheckInterval+1))}
	}
	for key, p := range w.pods {
		if !seen[key] {
			w.drop(key, p)
		}
	}
}

// drop forgets a pod that is gone.
func (w *Watcher) drop(key journal.Key, p *pod) {
	if p.drift != nil {
		w.Log.Info("a pod whose network had drifted is gone", "pod", p.record.Pod, "sandbox", key.ContainerID,
			"drifted", w.now().Sub(p.drift.Since).Round(time.Second))
	}
	delete(w.pods, key)
	w.mu.Lock()
	delete(w.told, key)
	w.mu.Unlock()
	w.publish()
}
