package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

func (n *testNode) mustBegin(t *testing.T, ctx context.Context, id string) *Flight {
	t.Helper()
	flight, err := n.Begin(ctx, podNamed(id), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(flight.End)
	return flight
}

func TestFlightTakesFourStepsInOrder(t *testing.T) {
	n := newNode(t)
	flight := n.mustBegin(t, t.Context(), "a")
	n.mustAdd(t, "a")
	if err := flight.Started(t.Context()); err != nil {
		t.Fatal(err)
	}
	flight.End()
	var got []journal.StepTime
	testkit.Eventually(t, "steps in the journal", func() bool {
		got = n.record(t, "a").Steps
		return len(got) == 4
	})
	for i, step := range []Step{StepCreate, StepNetNS, StepPlugin, StepStart} {
		if got[i].Step != string(step) || got[i].Duration < 0 {
			t.Errorf("step %d is %+v, want %s with a duration", i+1, got[i], step)
		}
		if i > 0 && got[i].Start.Before(got[i-1].Start) {
			t.Errorf("step %s began before step %s", got[i].Step, got[i-1].Step)
		}
	}
	if len(n.flights.pods) != 0 || len(n.flights.keys) != 0 {
		t.Error("the call is still in flight")
	}
}

func TestBeginRefusesWhileNotReady(t *testing.T) {
	n := newNode(t)
	n.plugin.unready = errors.New("no usable network in /etc/cni/net.d")
	_, err := n.Begin(t.Context(), podNamed("a"), nil)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "ns/pod-a") || !strings.Contains(err.Error(), "no usable network") {
		t.Errorf("Begin = %v, want a refusal with pod and reason", err)
	}
	if len(n.flights.pods) != 0 {
		t.Error("a refused pod is in flight")
	}
}

func TestFlightThatFailsAfterAdd(t *testing.T) {
	for _, c := range []struct {
		name         string
		unknown, has bool
		gone         bool
	}{
		{"forgotten by the runtime", false, false, true},
		{"kept by the runtime for StopPodSandbox", false, true, false},
		{"outcome unknown", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.sandboxes.ids["a"] = c.has
			flight := n.mustBegin(t, t.Context(), "a")
			n.mustAdd(t, "a")
			flight.Failed(t.Context(), c.unknown)
			flight.End()
			if gone := n.record(t, "a") == nil; gone != c.gone {
				t.Errorf("network gone: %v, want %v", gone, c.gone)
			}
		})
	}
}

// A call whose outcome is unknown may have succeeded: the sweeper leaves its
// attachment alone for a while.
func TestSweepAfterAnUnknownOutcome(t *testing.T) {
	n := newNode(t)
	flight := n.mustBegin(t, t.Context(), "a")
	n.mustAdd(t, "a")
	flight.Failed(t.Context(), true)
	flight.End()
	start := time.Now()
	if err := n.sweep(t.Context()); err != nil || n.Pending() != 0 {
		t.Errorf("sweep = %v, %d pending; want nothing to be done yet", err, n.Pending())
	}
	n.now = func() time.Time { return start.Add(2 * unlisted) }
	if err := n.sweep(t.Context()); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "swept in the end", func() bool { return n.record(t, "a") == nil })
}

// A sandbox whose network went while it started does not count as up (A9).
func TestStartedWithoutNetwork(t *testing.T) {
	n := newNode(t)
	flight := n.mustBegin(t, t.Context(), "a")
	n.mustAdd(t, "a")
	if err := n.Detach(t.Context(), call("a")); err != nil {
		t.Fatal(err)
	}
	if err := flight.Started(t.Context()); err == nil || errors.Is(err, ErrBypassed) || !strings.Contains(err.Error(), "ns/pod-a") {
		t.Errorf("Started = %v, want an error that names the pod", err)
	}
	bypassed := n.mustBegin(t, t.Context(), "b")
	if err := bypassed.Started(t.Context()); !errors.Is(err, ErrBypassed) {
		t.Errorf("Started of a sandbox without ADD = %v, want %v", err, ErrBypassed)
	}
}

// The kubelet's deadline is ADD's: the runtime does not pass it on (A26).
func TestAddHasTheDeadlineOfRunPodSandbox(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	want, _ := ctx.Deadline()
	n.mustBegin(t, ctx, "a")
	n.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
		if got, ok := ctx.Deadline(); !ok || !got.Equal(want) {
			t.Errorf("ADD has the deadline %v (%v), want %v", got, ok, want)
		}
		return nil
	}
	n.mustAdd(t, "a")
}

// A plugin of the chain that calls crinet again for the same sandbox would wait
// for its own parent (review row A3).
func TestNestedCallFailsAtOnce(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		verb string
		call func() error
	}{
		{"ADD", func() error { _, err := n.Attach(t.Context(), call("a")); return err }},
		{"CHECK", func() error { return n.Check(t.Context(), key("a")) }},
	} {
		n.plugin.setUp = func(context.Context, *cni.Attachment) error {
			n.plugin.mu.Lock()
			n.plugin.setUp = nil // the nested ADD must not come to a plugin, but if it did, once is enough
			n.plugin.mu.Unlock()
			return c.call()
		}
		start := time.Now()
		_, err := n.Attach(t.Context(), call("a"))
		var said *wire.Error
		if !errors.As(err, &said) || said.Code != wire.CodeInvalidConfig || !strings.Contains(err.Error(), "calls crinet again") ||
			!strings.HasPrefix(said.Msg, c.verb) {
			t.Errorf("nested %s: ADD = %v, want code 7 and the reason", c.verb, err)
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("nested %s took %v", c.verb, took)
		}
		if r := n.record(t, "a"); r != nil {
			t.Errorf("nested %s: record left: %+v", c.verb, r)
		}
	}
}

// A nested DEL is left to the DEL around it, which would never succeed if the
// nested one failed (review row A3).
func TestNestedDelIsLeftToTheOneAround(t *testing.T) {
	n := newNode(t)
	n.plugin.tear = func(context.Context, *cni.Attachment) error {
		n.plugin.mu.Lock()
		n.plugin.tear = nil // as above
		n.plugin.mu.Unlock()
		return n.Detach(t.Context(), call("a"))
	}
	failed := errors.New("no address left")
	n.plugin.setUp = func(context.Context, *cni.Attachment) error { return failed }
	if _, err := n.Attach(t.Context(), call("a")); !errors.Is(err, failed) || strings.Contains(err.Error(), "besides") {
		t.Errorf("ADD = %v, want its own failure alone", err)
	}
	if r := n.record(t, "a"); r != nil {
		t.Errorf("record left: %+v", r)
	}
	n.plugin.setUp = nil
	n.mustAdd(t, "a")
	n.plugin.tear = func(context.Context, *cni.Attachment) error { return n.Detach(t.Context(), call("a")) }
	if err := n.Detach(t.Context(), call("a")); err != nil {
		t.Errorf("DEL = %v", err)
	}
	if r := n.record(t, "a"); r != nil {
		t.Errorf("record left: %+v", r)
	}
}

// While its own STATUS is under way, crinet answers for itself (A3c).
func TestStatusWhileOwnStatusIsUnderWay(t *testing.T) {
	underWay := true
	n := newNode(t, func(c *Config) { c.StatusUnderWay = func() bool { return underWay } })
	n.plugin.unready = errors.New("crinet says no")
	if err := n.Status(); err != nil {
		t.Errorf("Status inside STATUS = %v, want crinet's own word", err)
	}
	underWay = false
	if err := n.Status(); err == nil {
		t.Error("Status = nil, want the network's word")
	}
}

// follower keeps what it is told.
type follower struct {
	mu    sync.Mutex
	told  []string
	asked int
}

type stepKey struct{}

func (f *follower) follow(ctx context.Context) Follower {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	whose, _ := ctx.Value(stepKey{}).(string)
	return func(ctx context.Context, step Step) (context.Context, func(error)) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.told = append(f.told, whose+" "+string(step))
		return context.WithValue(ctx, stepKey{}, string(step)), func(err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.told = append(f.told, fmt.Sprintf("%s ended: %v", step, err))
		}
	}
}

// TestFollower: who follows a sandbox is told of each step's begin and end once, also
// when one fails, and its context reaches the plugin.
func TestFollower(t *testing.T) {
	for name, tt := range map[string]struct {
		direct     bool
		fail       error
		notStarted bool
		want       []string
	}{
		"not started": {false, nil, true, []string{"call create", "create ended: <nil>", "call netns", "netns ended: <nil>", "call plugin", "plugin ended: <nil>", "call start", "start ended: the runtime did not start the sandbox"}},
		"asked for":   {false, nil, false, []string{"call create", "create ended: <nil>", "call netns", "netns ended: <nil>", "call plugin", "plugin ended: <nil>", "call start", "start ended: <nil>"}},
		"fails":       {false, errors.New("no"), false, []string{"call create", "create ended: <nil>", "call netns", "netns ended: <nil>", "call plugin", "plugin ended: no"}},
		"direct":      {true, nil, false, []string{"call netns", "netns ended: <nil>", "call plugin", "plugin ended: <nil>"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			f := new(follower)
			n.follow = f.follow
			n.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
				if step := ctx.Value(stepKey{}); step != "plugin" {
					t.Errorf("the plugin runs in the context of step %v", step)
				}
				return tt.fail
			}
			ctx := context.WithValue(t.Context(), stepKey{}, "call")
			var flight *Flight
			addCtx := ctx
			if !tt.direct {
				flight = n.mustBegin(t, ctx, "a")
				addCtx = t.Context()
			}
			_, err := n.Attach(addCtx, call("a"))
			if !errors.Is(err, tt.fail) {
				t.Fatalf("Attach = %v", err)
			}
			if flight != nil {
				if err != nil || tt.notStarted {
					flight.Failed(ctx, false)
				} else if err := flight.Started(ctx); err != nil {
					t.Error(err)
				}
				flight.End()
				flight.End()
			}
			if diff := cmp.Diff(tt.want, f.told); diff != "" {
				t.Error(diff)
			}
			if f.asked != 1 {
				t.Errorf("a follower was asked for %d times", f.asked)
			}
		})
	}
}

// Where nobody follows, a step allocates nothing for that.
func TestNoFollower(t *testing.T) {
	n := newNode(t)
	flight := &Flight{engine: n.Engine}
	ctx := t.Context()
	if allocs := testing.AllocsPerRun(100, func() {
		flight.followBy(ctx)
		flight.steps = flight.steps[:0]
		flight.begin(ctx, StepPlugin)
		flight.tell(nil)
	}); allocs != 0 {
		t.Errorf("%v allocations a step", allocs)
	}
}
