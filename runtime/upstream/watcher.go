package upstream

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// Interval is how often the runtime is asked while nobody wants to know.
	Interval = 5 * time.Second
	// retryInterval is how often a runtime that does not answer is asked.
	retryInterval = time.Second
	// fresh is the age up to which an answer is as good as a new one.
	fresh = time.Second
	// patience is how old a question may become before its callers get the last
	// answer instead of waiting on.
	patience = 4 * time.Millisecond
	// failedPatience is patience while the last answer is a failure.
	failedPatience = 40 * time.Millisecond
	// Hung is how long a runtime may take for an answer before it counts as not
	// ready.
	Hung = 30 * time.Second
)

// Answer is what the runtime said last.
type Answer struct {
	// Status is its answer to Status with verbose; nil while there is none. It
	// must not be changed.
	Status *runtimeapi.StatusResponse
	// Facts are what Status tells of its CNI settings; nil with Status.
	Facts *Facts
	// Err is why the newest question failed, a gRPC status; nil if it did not.
	Err error
	// Asked is when the question was put that Status answers.
	Asked time.Time
	// Silent is how long the runtime has not answered the newest question; 0 if
	// it has.
	Silent time.Duration
}

// known says whether the runtime ever answered or failed.
func (a *Answer) known() bool { return a.Status != nil || a.Err != nil }

// Watcher keeps the runtime's last answer. It may be used from many goroutines.
type Watcher struct {
	client   runtimeapi.RuntimeServiceClient
	endpoint string
	log      *slog.Logger
	wake     chan struct{} // holds one: somebody wants a new answer

	mu       sync.Mutex // guards what follows
	last     Answer
	question *question // under way, or nil
}

// question is one question that is under way.
type question struct {
	began    time.Time
	answered chan struct{} // closed when it is answered
}

// NewWatcher returns a watcher of the runtime at the other end of conn. endpoint
// is its name in messages. How soon the watcher sees a runtime that is back
// depends on how soon conn connects again.
func NewWatcher(conn grpc.ClientConnInterface, endpoint string, log *slog.Logger) *Watcher {
	return &Watcher{
		client: runtimeapi.NewRuntimeServiceClient(conn), endpoint: endpoint, log: log,
		wake: make(chan struct{}, 1),
	}
}

// Run asks until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := Interval
		if w.ask(ctx) != nil {
			wait = retryInterval
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-w.wake:
		}
		timer.Stop()
	}
}

// Wake asks for a new answer. It does not wait for it.
func (w *Watcher) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Last returns the last answer, from memory.
func (w *Watcher) Last() Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.last
	if w.question != nil {
		last.Silent = time.Since(w.question.began)
	}
	return last
}

// Status returns a fresh answer if there is one within a few milliseconds, and
// else the last one. It waits longer only while there never was an answer.
func (w *Watcher) Status(ctx context.Context) Answer {
	last := w.Last()
	if last.Err == nil && last.Status != nil && time.Since(last.Asked) < fresh {
		return last
	}
	q, isNew := w.begin()
	if isNew {
		w.Wake()
	}
	var timeout <-chan time.Time
	if last.known() {
		wait := patience
		if last.Err != nil {
			wait = failedPatience
		}
		timer := time.NewTimer(wait - time.Since(q.began))
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-q.answered:
	case <-timeout:
	case <-ctx.Done():
		if !last.known() {
			return Answer{Err: status.FromContextError(ctx.Err()).Err()}
		}
	}
	return w.Last()
}

// begin returns the question under way, or else a new one, which Run puts to the
// runtime when it wakes up.
func (w *Watcher) begin() (q *question, isNew bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.question != nil {
		return w.question, false
	}
	w.question = &question{began: time.Now(), answered: make(chan struct{})}
	return w.question, true
}

// ask puts one question and waits for its answer. It has no time limit but ctx:
// a deadline would be sent to the runtime, which might fail the call because of
// it, and that failure would count as an answer.
func (w *Watcher) ask(ctx context.Context) error {
	q, _ := w.begin()
	answer, err := w.put(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.question = nil
	close(q.answered)
	if ctx.Err() != nil {
		return ctx.Err() // crinetd ends; that says nothing about the runtime
	}
	before := w.last.Err
	if err != nil {
		w.last.Err = w.explain(err)
		if before == nil {
			w.log.Warn("the container runtime does not answer; crinetd goes on asking", "endpoint", w.endpoint, "err", w.last.Err)
		}
		return err
	}
	w.last = answer
	if before != nil {
		w.log.Info("the container runtime answers again", "runtime", answer.Facts.Name, "version", answer.Facts.Version)
	}
	return nil
}

// put asks the runtime for its status and its version. The version is asked
// every time, because a runtime can be replaced between two questions without
// one of them failing.
func (w *Watcher) put(ctx context.Context) (Answer, error) {
	asked := time.Now()
	resp, err := w.client.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return Answer{}, err
	}
	version, err := w.client.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return Answer{}, err
	}
	facts := ReadFacts(version.GetRuntimeName(), version.GetRuntimeVersion(), resp)
	return Answer{Status: resp, Facts: facts, Asked: asked}, nil
}

// explain names the runtime in an error that was made on this side.
func (w *Watcher) explain(err error) error {
	if status.Code(err) != codes.Unavailable {
		return err
	}
	return status.Errorf(codes.Unavailable, "the container runtime does not answer at %s, it may be down: %s",
		w.endpoint, status.Convert(err).Message())
}
