package drift

import (
	"context"
	"slices"
	"time"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

// look looks at pods, one after the other. Those that are suspected already are looked at
// with their sandbox's lock held.
func (w *Watcher) look(ctx context.Context, due []*pod) {
	node, err := inspect.OpenNode()
	if err != nil {
		w.Log.Warn("pods cannot be looked at for drift", "err", err)
		for _, p := range due {
			p.due = w.now().Add(w.Interval)
		}
		return
	}
	defer node.Close()
	subject := w.Subjects()
	for _, p := range due {
		if ctx.Err() != nil {
			return
		}
		w.Metrics.looks.Inc()
		if p.suspects != nil {
			w.confirm(ctx, p)
			continue
		}
		findings, ok := w.amiss(p, node.Inspect(ctx, subject(p.record)))
		p.due = w.now().Add(w.Interval)
		switch {
		case !ok:
			p.due = w.now().Add(min(w.Interval, time.Second))
		case len(findings) == 0:
			w.set(p, nil)
		case !same(findings, p.found):
			p.suspects, p.due = findings, w.now().Add(again)
			w.putTableRight(findings)
		default:
			w.mend(ctx, p)
		}
	}
}

// confirm takes the second look at a pod, with the sandbox's lock held.
func (w *Watcher) confirm(ctx context.Context, p *pod) {
	suspects := p.suspects
	p.suspects, p.due = nil, w.now().Add(w.Interval)
	var findings []inspect.Finding
	seen := false
	ok, err := w.hold(ctx, p, func(ctx context.Context, r *journal.Record) {
		findings, seen = w.amiss(p, inspect.Inspect(ctx, w.Subjects()(r)))
	})
	switch {
	case err != nil || !ok:
		// Somebody changes the attachment or is about to end it. Soon it is known.
		p.due = w.now().Add(min(w.Interval, time.Second))
		return
	case !seen:
		return
	}
	agreed := slices.DeleteFunc(slices.Clone(findings), func(f inspect.Finding) bool { return !has(suspects, f) })
	if w.sandboxGone(ctx, p, agreed) {
		return
	}
	if len(agreed) < len(findings) { // what is new needs a second look as well
		p.suspects, p.due = findings, w.now().Add(again)
	}
	if len(agreed) == 0 && len(findings) > 0 {
		return
	}
	w.set(p, agreed)
	if len(agreed) > 0 {
		w.mend(ctx, p)
	}
}

// hold calls do while nothing else changes a pod's attachment, if that is the one that is
// known and nobody changes it now.
func (w *Watcher) hold(ctx context.Context, p *pod, do func(context.Context, *journal.Record)) (held bool, err error) {
	lock, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	_, err = w.Engine.Hold(lock, p.record.Key(), func(r *journal.Record) {
		if !r.Created.Equal(p.record.Created) {
			return
		}
		held = true
		look, cancel := context.WithTimeout(ctx, lookPatience)
		defer cancel()
		do(look, r)
	})
	return held, err
}

// amiss picks what is not as it should be. ok is false if that is not known, since
// something could not be looked at.
func (w *Watcher) amiss(p *pod, findings []inspect.Finding) (amiss []inspect.Finding, ok bool) {
	for _, f := range findings {
		if f.Part == inspect.PartUnknown {
			if p.unseen++; p.unseen == blind {
				w.Log.Warn("a pod cannot be looked at for drift", "pod", p.record.Pod, "sandbox", p.record.Attachment.ContainerID, "err", f.Have)
			}
			return nil, false
		}
		if !f.OK {
			amiss = append(amiss, f)
		}
	}
	p.unseen = 0
	return amiss, true
}

// sandboxGone says whether a namespace that is gone is that of a sandbox which the
// runtime does not have either, or cannot be asked for: the sweeper sees to that.
func (w *Watcher) sandboxGone(ctx context.Context, p *pod, findings []inspect.Finding) bool {
	if !slices.ContainsFunc(findings, func(f inspect.Finding) bool { return f.Part == inspect.PartNetNS }) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	has, err := w.HasSandbox(ctx, p.record.Attachment.ContainerID)
	return err != nil || !has
}

// putTableRight has hostPorts put right what is amiss there. That takes milliseconds, so
// that the second look finds nothing.
func (w *Watcher) putTableRight(findings []inspect.Finding) {
	for _, f := range findings {
		if f.Part == inspect.PartTable {
			w.Recheck("a pod lacks " + f.Have)
			return
		}
	}
}

// same says whether two lists name the same faults.
func same(a, b []inspect.Finding) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(f inspect.Finding) bool { return !has(b, f) })
}

// has says whether a list has a fault. What is there in the place of what should be may
// differ from look to look.
func has(all []inspect.Finding, f inspect.Finding) bool {
	return slices.ContainsFunc(all, func(other inspect.Finding) bool { return other.Part == f.Part && other.Want == f.Want })
}

// set notes what is amiss with a pod by crinetd's own eyes, and tells when that changes.
func (w *Watcher) set(p *pod, found []inspect.Finding) {
	if same(found, p.found) {
		return
	}
	p.found = found
	w.tell(p)
	if len(found) > 0 && p.passed {
		p.checkDue = w.now() // what do the plugins say?
	}
}
