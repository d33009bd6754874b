package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Step is one of the four steps of a sandbox's lifecycle, in CNI's order.
type Step string

const (
	// StepCreate is the runtime making the sandbox, from RunPodSandbox on.
	StepCreate Step = "create"
	// StepNetNS is taking over the network namespace that the runtime made:
	// crinetd looks at it and journals what it will do in it.
	StepNetNS Step = "netns"
	// StepPlugin is the network plugin's ADD, the hostPorts, and the journal.
	StepPlugin Step = "plugin"
	// StepStart is the runtime starting the sandbox's process, until it answers
	// RunPodSandbox.
	StepStart Step = "start"
)

// Flight is one sandbox in the making: a RunPodSandbox call under way and the
// ADD inside it. The sweeper leaves its attachment alone.
type Flight struct {
	// First has the pod's ADD come before others that wait. It is set before the runtime
	// is asked for the sandbox.
	First bool

	engine *Engine
	pod    journal.Pod
	// asked says whether the sandbox was asked for through crinetd; otherwise
	// somebody asked the runtime itself, and the flight is the ADD alone.
	asked    bool
	deadline time.Time // RunPodSandbox's; zero if it has none
	release  func()    // gives the hostPorts back that nobody mapped

	adding, over bool // its ADD is under way; its RunPodSandbox has ended; guarded by flights.mu

	mu     sync.Mutex // guards what follows
	steps  []journal.StepTime
	key    journal.Key // of the attachment; zero before ADD
	cause  error       // why ADD failed; nil if it did not
	follow Follower    // may be nil
	ended  func(error) // of the step under way, for the follower; nil if there is none
}

// Follower follows the steps of one sandbox in the making: it is told that a step
// begins, and returns the context for the step's work and what is called at its end.
type Follower func(ctx context.Context, step Step) (_ context.Context, ended func(error))

// begin ends the step under way, if any, and begins the next. It returns the context
// for the step's work.
func (f *Flight) begin(ctx context.Context, step Step) context.Context {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.engine.now()
	f.endStep(now)
	f.steps = append(f.steps, journal.StepTime{Step: string(step), Start: now, Duration: -1})
	if f.follow != nil && (f.asked || step != StepStart) { // whose end nobody would tell
		ctx, f.ended = f.follow(ctx, step)
	}
	return ctx
}

// followBy has the flight followed, if it is not: one that nobody asked crinetd for
// begins with its ADD.
func (f *Flight) followBy(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.follow == nil && f.engine.follow != nil {
		f.follow = f.engine.follow(ctx)
	}
}

// tell tells the follower that the step under way has ended.
func (f *Flight) tell(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tellLocked(err)
}

func (f *Flight) tellLocked(err error) {
	if f.ended != nil {
		f.ended(err)
		f.ended = nil
	}
}

// end ends the step under way and returns all steps.
func (f *Flight) end() []journal.StepTime {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endStep(f.engine.now())
	return append([]journal.StepTime(nil), f.steps...)
}

func (f *Flight) endStep(now time.Time) {
	f.tellLocked(nil)
	if n := len(f.steps); n > 0 && f.steps[n-1].Duration < 0 {
		f.steps[n-1].Duration = now.Sub(f.steps[n-1].Start)
	}
}

// attachment returns the key of the flight's attachment, and whether ADD came.
func (f *Flight) attachment() (journal.Key, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.key, f.key != journal.Key{}
}

// bound gives an ADD the deadline of its RunPodSandbox: the runtime does not
// pass it on.
func (f *Flight) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if f.deadline.IsZero() {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, f.deadline)
}

// fails notes why the flight's ADD failed.
func (f *Flight) fails(cause error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cause = fmt.Errorf("pod %s: %w", f.pod, cause)
}

// Cause returns why the flight's ADD failed, nil if it did not. The runtime may
// not get to tell: it undoes first what there is of the sandbox.
func (f *Flight) Cause() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cause
}

// Adding says whether the flight's ADD has begun and has not ended.
func (f *Flight) Adding() bool {
	f.engine.flights.mu.Lock()
	defer f.engine.flights.mu.Unlock()
	return f.adding
}

// ErrBypassed is the error of [Flight.Started] for a sandbox that the runtime
// networked without calling crinet.
var ErrBypassed = errors.New("the runtime networked the pod without calling crinet")

// errNotStarted is what a follower is told of the step in which the runtime failed.
var errNotStarted = errors.New("the runtime did not start the sandbox")

// Started says that the runtime has started the sandbox. It keeps the steps'
// times, for people. The error says that
// the sandbox runs without its network: it wraps ErrBypassed, or its attachment
// was undone meanwhile and the sandbox must go.
func (f *Flight) Started(ctx context.Context) error {
	e := f.engine
	steps := f.end()
	key, attached := f.attachment()
	if !attached {
		return fmt.Errorf("pod %s: %w", f.pod, ErrBypassed)
	}
	e.metrics.steps(steps)
	unlock, err := e.locks.lock(ctx, key, "RunPodSandbox")
	if err != nil {
		return err
	}
	defer unlock()
	r, err := e.journal.Get(key)
	if err != nil {
		return fmt.Errorf("pod %s: sandbox %s: %w", f.pod, key.ContainerID, err)
	}
	if r == nil || r.State != journal.Attached {
		return fmt.Errorf("pod %s: the network of sandbox %s was removed while the sandbox started", f.pod, key.ContainerID)
	}
	r.Steps = steps
	if err := e.journal.Put(r); err != nil {
		e.log.Warn("the times of a pod's steps are not kept", "pod", f.pod, "sandbox", key.ContainerID, "err", err)
	}
	return nil
}

// Failed says that the runtime failed to start the sandbox. The runtime calls
// DEL itself as a rule, before it answers; containerd forgets the sandbox when
// that DEL fails. unknown says that the answer is the caller's or the
// connection's, not the runtime's: the sandbox may still come up.
func (f *Flight) Failed(ctx context.Context, unknown bool) {
	if cause := f.Cause(); cause != nil {
		f.tell(cause)
	} else {
		f.tell(errNotStarted)
	}
	key, attached := f.attachment()
	if !attached {
		return
	}
	if unknown {
		f.engine.flights.loosen(key, f.engine.now())
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	f.leave()
	if err := f.engine.sweepOne(ctx, key); err != nil {
		f.engine.log.Warn("a sandbox failed to start, and its network is not removed yet; the sweeper tries again",
			"pod", f.pod, "sandbox", key.ContainerID, "err", err)
	}
}

// End ends the flight and gives back what it holds. It may be called again.
func (f *Flight) End() {
	f.tell(f.Cause())
	f.leave()
	f.release()
}

func (f *Flight) leave() { f.engine.flights.remove(f) }
