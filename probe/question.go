package probe

import (
	"context"
	"sync"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/internal/dirs"
)

const (
	// A file that gave a transient answer is asked again after minRetry, then
	// ever later.
	minRetry = 250 * time.Millisecond
	maxRetry = 30 * time.Second
	// patience is how long a file that is asked keeps its place. After that it
	// is asked on, but another one gets the place.
	patience = 250 * time.Millisecond
)

// question is what is known of one file. It is guarded by Prober.mu.
type question struct {
	id       dirs.ID
	last     *answer  // the newest one of this file; nil before the first one
	versions []string // the last good answer, perhaps of what the path held before
	ctx      context.Context
	cancel   context.CancelFunc
	first    chan struct{} // closed with the first answer
}

// update makes the questions those about the given files, which are told by
// path. It returns a channel for each new one, closed at its first answer.
func (p *Prober) update(files map[string]dirs.ID) (fresh []<-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for path, q := range p.questions {
		if files[path].IsZero() {
			q.cancel()
			delete(p.questions, path)
		}
	}
	for path, id := range files {
		old := p.questions[path]
		stopped := old != nil && old.ctx.Err() != nil && (old.last == nil || old.last.transient)
		if old != nil && old.id == id && !stopped {
			continue
		}
		q := &question{id: id, first: make(chan struct{})}
		q.ctx, q.cancel = context.WithCancel(context.Background()) // ended by Stop
		if old != nil {
			old.cancel()
			q.versions = old.versions
		}
		p.questions[path] = q
		fresh = append(fresh, q.first)
		p.asking.Go(func() { p.pursue(q, path) })
	}
	return fresh
}

// pursue asks a file until it has a good or final answer.
func (p *Prober) pursue(q *question, path string) {
	wait := backoff.Backoff{First: minRetry, Max: maxRetry}
	for {
		begun := time.Now()
		a := p.askInTurn(q.ctx, path)
		if !p.note(q, a) || !a.transient {
			return
		}
		// A file that hangs is asked no more than half of the time.
		if !backoff.Sleep(q.ctx, max(wait.Next(), time.Since(begun))) {
			return
		}
	}
}

// askInTurn asks a file as soon as there is a place.
func (p *Prober) askInTurn(ctx context.Context, path string) answer {
	select {
	case <-ctx.Done():
		return answer{}
	case p.places <- struct{}{}:
	}
	leave := sync.OnceFunc(func() { <-p.places })
	defer leave()
	defer time.AfterFunc(patience, leave).Stop()
	return p.ask(ctx, path)
}

// note takes an answer down. It returns false if the question has ended: what
// was cut off is no answer.
func (p *Prober) note(q *question, a answer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q.ctx.Err() != nil {
		return false
	}
	if q.last == nil {
		close(q.first)
	}
	q.last = &a
	if !a.transient {
		q.versions = a.versions // none, if the answer is a final no
	}
	select {
	case p.answered <- struct{}{}:
	default:
	}
	return true
}

// fill writes what is known into pl.
func (q *question) fill(pl *Plugin) {
	pl.Versions = q.versions
	pl.Busy = q.last == nil || q.last.transient
	switch {
	case q.last == nil && q.versions == nil:
		pl.Reason = "has not answered VERSION yet"
	case q.last == nil:
	case q.last.reason == "":
		pl.About = q.last.about
	case q.last.transient && q.versions != nil:
		pl.Doubt = "its last good answer is used: it " + q.last.reason
	default:
		pl.Reason = q.last.reason
	}
}
