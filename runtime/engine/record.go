package engine

import (
	"context"
	"strings"
	"sync"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Recorder keeps operations for people (package recorder). It never fails and never
// waits long.
type Recorder interface {
	// Begin begins an operation on the attachment of a record, or of what is known of
	// it. What is done under the returned context belongs to it. end is given the
	// record as it is then, nil if there is none. Under a context that has an operation
	// it begins none.
	Begin(ctx context.Context, verb, by string, about *journal.Record) (_ context.Context, end func(*journal.Record, []journal.StepTime, error))
}

// Who asks for operations, as the Recorder gets it.
const (
	byCRI     = "cri"     // the kubelet or crictl, through crinetd
	byRuntime = "runtime" // the runtime, by itself or asked directly
	byCrinetd = "crinetd"
	byTrial   = "trial"
)

// asker is the key of who asks, in a context.
type asker struct{}

// askedBy notes in a context who asks for what is done under it. Without a note it is
// the runtime.
func askedBy(ctx context.Context, by string) context.Context {
	return context.WithValue(ctx, asker{}, by)
}

// ending are the sandboxes that the runtime was asked through crinetd to stop or
// remove. The zero value is ready.
type ending struct {
	mu  sync.Mutex     // guards what follows
	ids map[string]int // sandbox id, or its beginning -> calls under way
}

// Ending says that the runtime is about to be asked to end a sandbox, named by its id
// or the beginning of it, until over is called. It is for the Recorder: the DEL that
// comes meanwhile is the caller's.
func (e *Engine) Ending(id string) (over func()) {
	s := &e.ending
	add := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ids == nil {
			s.ids = make(map[string]int)
		}
		if s.ids[id] += n; s.ids[id] == 0 {
			delete(s.ids, id)
		}
	}
	add(1)
	return func() { add(-1) }
}

// any says whether a sandbox is being ended.
func (s *ending) any() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ids) > 0
}

// has says whether a sandbox is being ended.
func (s *ending) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for asked := range s.ids {
		if asked != "" && strings.HasPrefix(id, asked) {
			return true
		}
	}
	return false
}

// OnOwnBehalf notes that crinetd itself asks for what is done under the context.
func OnOwnBehalf(ctx context.Context) context.Context { return askedBy(ctx, byCrinetd) }

// record begins an operation at the Recorder, if there is one.
func (e *Engine) record(ctx context.Context, verb string, about *journal.Record) (_ context.Context, end func(*journal.Record, []journal.StepTime, error)) {
	if e.recorder == nil {
		return ctx, func(*journal.Record, []journal.StepTime, error) {}
	}
	by, ok := ctx.Value(asker{}).(string)
	switch {
	case ok:
	case verb == "DEL" && e.ending.has(about.Attachment.ContainerID):
		by = byCRI
	default:
		by = byRuntime
	}
	return e.recorder.Begin(ctx, verb, by, about)
}

// recordOf is what a call says of its attachment.
func recordOf(call *Call) *journal.Record {
	r := &journal.Record{Pod: call.Pod}
	r.Attachment.ContainerID, r.Attachment.IfName, r.Attachment.NetNS = call.ContainerID, call.IfName, call.NetNS
	return r
}

// recordAttach begins the operation of an ADD. end must be called with its error, and
// planned with the attachment's record as soon as there is one.
func (e *Engine) recordAttach(ctx context.Context, call *Call, flight *Flight) (_ context.Context, planned func(*journal.Record), end func(error)) {
	if flight.asked {
		ctx = askedBy(ctx, byCRI)
	}
	about := recordOf(call)
	ctx, ended := e.record(ctx, "ADD", about)
	return ctx, func(r *journal.Record) { about = r }, func(err error) { ended(about, flight.soFar(), err) }
}

// soFar returns the flight's steps, with the time that the one under way has taken.
func (f *Flight) soFar() []journal.StepTime {
	f.mu.Lock()
	defer f.mu.Unlock()
	steps := append([]journal.StepTime(nil), f.steps...)
	if n := len(steps); n > 0 && steps[n-1].Duration < 0 {
		if steps[n-1].Step == string(StepStart) {
			return steps[:n-1] // it has only begun
		}
		steps[n-1].Duration = f.engine.now().Sub(steps[n-1].Start)
	}
	return steps
}
