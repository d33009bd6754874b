package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// askTimeout bounds a question to the container runtime.
	askTimeout = 10 * time.Second
	// sweepInterval is how often the sweeper asks what belongs to nobody.
	sweepInterval = time.Minute
	// sweepRetry is the wait after the runtime could not be asked.
	sweepRetry = time.Second
)

// The sweeper answers one question: which attachments belong to nobody? They
// are those in the journal and in the plugins' cache, without the sandboxes that
// the runtime has and without the calls in flight. What it names, the queue
// undoes. It is asked at the start, in intervals, and after a failure.

// Recover sweeps before the runtime is asked: what an earlier run began and did
// not finish, and what another boot left, belongs to nobody whatever the runtime
// says. Call it before serving.
func (e *Engine) Recover() error {
	everything := func(string) bool { return true }
	records, err := e.journal.Sandbox("")
	if err != nil {
		return err
	}
	restored, err := e.restore(records, everything)
	if err != nil {
		return fmt.Errorf("read the cache of CNI results: %w", err)
	}
	records = append(records, restored...)
	orphans := e.sweepRecords(records, nil, everything)
	if len(records) > 0 {
		e.log.Info("journal read", "attachments", len(records), "restored", len(restored), "toUndo", orphans)
	}
	return nil
}

// runSweeper sweeps as soon as the runtime answers and then in intervals, until
// ctx ends.
func (e *Engine) runSweeper(ctx context.Context) {
	for wait := time.Duration(0); backoff.Sleep(ctx, wait); {
		wait = sweepInterval
		if err := e.sweep(ctx); err != nil {
			e.log.Debug("the sweeper could not compare the journal with the runtime's sandboxes", "err", err)
			wait = sweepRetry
		}
	}
}

// sweep holds all attachments against the runtime's sandboxes.
func (e *Engine) sweep(ctx context.Context) error {
	// In this order: a sandbox whose flight ends after the second line is listed
	// in the third.
	records, err := e.journal.Sandbox("")
	if err != nil || len(records) == 0 {
		return err
	}
	inFlight := e.flights.inFlight()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	listed, err := e.sandboxes.List(ctx)
	if err != nil {
		return err
	}
	e.sweepRecords(records, inFlight, func(id string) bool { return listed[id] })
	return nil
}

// sweepCache holds what only the plugins' cache knows against the runtime's
// sandboxes. It reads the whole cache, and is asked as often as GC.
func (e *Engine) sweepCache(listed map[string]bool) error {
	records, err := e.journal.Sandbox("")
	if err != nil {
		return err
	}
	inFlight := e.flights.inFlight()
	restored, err := e.restore(records, func(id string) bool { return listed[id] })
	if err != nil {
		return err
	}
	e.sweepRecords(restored, inFlight, func(id string) bool { return listed[id] })
	return nil
}

// sweepOne asks the question for one attachment.
func (e *Engine) sweepOne(ctx context.Context, key journal.Key) error {
	has, err := e.sandboxes.Has(ctx, key.ContainerID)
	if err != nil {
		return err
	}
	r, err := e.journal.Get(key)
	if err != nil || r == nil {
		return err
	}
	if !has {
		e.flights.settle(key) // the runtime has answered, and has no such sandbox
	}
	if e.wanted(r, nil, has) {
		return nil
	}
	return e.detachKey(askedBy(context.WithoutCancel(ctx), byCrinetd), key)
}

// sweepRecords hands the records that belong to nobody to the queue, and says
// how many they are.
func (e *Engine) sweepRecords(records []*journal.Record, inFlight map[journal.Key]bool, listed func(id string) bool) (orphans int) {
	for _, r := range records {
		has := listed(r.Attachment.ContainerID)
		if e.wanted(r, inFlight, has) {
			continue
		}
		orphans++
		e.log.Info("an attachment belongs to no sandbox: crinetd removes it", "pod", r.Pod,
			"sandbox", r.Attachment.ContainerID, "state", string(r.State), "runtimeHasSandbox", has, "otherBoot", r.BootID != e.bootID)
		e.queue.add(&journal.Record{Attachment: r.Attachment, Created: r.Created})
	}
	return orphans
}

// wanted says whether an attachment belongs to somebody: to a call in flight, to
// a sandbox that the runtime has, or to one that the runtime may be about to have.
// A trial that is over belongs to nobody.
func (e *Engine) wanted(r *journal.Record, inFlight map[journal.Key]bool, listed bool) bool {
	switch {
	case inFlight[r.Key()] || e.flights.has(r.Key()):
		return true
	case r.Trial || !e.Stands(r):
		return false
	case listed:
		e.flights.settle(r.Key())
		return true
	default:
		return e.recent(r) && isNetNS(r.Attachment.NetNS)
	}
}

// recent says whether the flight of an attachment may go on without crinetd. For
// a flight of an earlier run only the wall clock is left, which may be wrong: it
// counts from the start of this run at most.
func (e *Engine) recent(r *journal.Record) bool {
	if e.flights.recent(r.Key(), e.now()) {
		return true
	}
	return r.Created.After(e.started.Add(-unlisted)) && r.Created.Before(e.started) && e.now().Sub(e.started) < unlisted
}

// restore journals the attachments of the plugins' cache that the journal does
// not know: it was damaged, or somebody removed it. An attachment that nobody
// wants is journalled as one to undo. What carries no note of crinetd's is not
// crinetd's and stays untouched.
func (e *Engine) restore(known []*journal.Record, listed func(id string) bool) ([]*journal.Record, error) {
	if e.cache == nil {
		return nil, nil
	}
	cached, err := e.cache.Cached("")
	if err != nil {
		return nil, err
	}
	have := make(map[journal.Key]bool, len(known))
	for _, r := range known {
		have[r.Key()] = true
	}
	var restored []*journal.Record
	for _, a := range cached {
		r := fromNote(a)
		if r == nil || have[r.Key()] || e.flights.has(r.Key()) {
			continue
		}
		if !e.wanted(r, nil, listed(a.ContainerID)) {
			r.State = journal.Detaching
		}
		added, err := e.addRecord(r)
		if err != nil {
			return restored, err
		}
		if added {
			e.log.Warn("the journal does not know an attachment of the cache of CNI results: its record is restored",
				"pod", r.Pod, "sandbox", r.Attachment.ContainerID, "network", r.Attachment.Network, "state", string(r.State))
			restored = append(restored, r)
		}
	}
	return restored, nil
}

// note is what the plugins' cache keeps of a record besides its attachment.
func note(r *journal.Record) (json.RawMessage, error) {
	kept := *r
	kept.Attachment, kept.State = cni.Attachment{}, ""
	data, err := json.Marshal(kept)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: note for the cache: %w", r.Attachment.ContainerID, err)
	}
	return data, nil
}

// fromNote makes the record of a cached attachment, whose ADD succeeded; nil if
// the attachment carries no note.
func fromNote(a cni.Attachment) *journal.Record {
	r := new(journal.Record)
	if len(a.Note) == 0 || json.Unmarshal(a.Note, r) != nil {
		return nil
	}
	r.State, r.Attachment = journal.Attached, a
	return r
}
