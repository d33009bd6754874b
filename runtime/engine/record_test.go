package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

// fakeRecorder keeps a line an operation.
type fakeRecorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *fakeRecorder) Begin(ctx context.Context, verb, by string, about *journal.Record) (context.Context, func(*journal.Record, []journal.StepTime, error)) {
	type inside struct{}
	if ctx.Value(inside{}) != nil {
		return ctx, func(*journal.Record, []journal.StepTime, error) {}
	}
	sandbox := about.Attachment.ContainerID
	return context.WithValue(ctx, inside{}, true), func(about *journal.Record, steps []journal.StepTime, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		line := fmt.Sprintf("%s %s by %s %s", verb, sandbox, by, about.Attachment.Network)
		for _, s := range steps {
			line += " " + s.Step
		}
		if err != nil {
			line += " failed"
		}
		r.lines = append(r.lines, line)
	}
}

func (r *fakeRecorder) kept() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// Each operation is recorded once, with who asked for it. A DEL that removes nothing is
// none.
func TestOperationsAreRecorded(t *testing.T) {
	kept := &fakeRecorder{}
	n := newNode(t, func(c *Config) { c.Recorder = kept })
	try := func(what error, want ...string) {
		t.Helper()
		if what != nil {
			t.Errorf("failed: %v", what)
		}
		got := kept.kept()
		if !slices.Equal(got, want) {
			t.Errorf("recorded %q, want %q", got, want)
		}
		kept.mu.Lock()
		kept.lines = nil
		kept.mu.Unlock()
	}
	_, err := n.Attach(t.Context(), call("a"))
	try(err, "ADD a by runtime mynet netns plugin")
	try(n.Check(t.Context(), call("a").Key()), "CHECK a by runtime mynet")
	try(n.Check(OnOwnBehalf(t.Context()), call("a").Key()), "CHECK a by crinetd mynet")
	try(n.Detach(t.Context(), call("a")), "DEL a by runtime mynet netns plugin")
	try(n.Detach(t.Context(), call("a")))

	flight, err := n.Begin(t.Context(), call("b").Pod, nil)
	if err != nil {
		t.Fatal(err)
	}
	n.plugin.setUp = func(context.Context, *cni.Attachment) error {
		if !flight.Adding() {
			t.Error("an ADD under way is not told")
		}
		return nil
	}
	if flight.Adding() {
		t.Error("an ADD that has not begun counts as under way")
	}
	if _, err = n.Attach(t.Context(), call("b")); err == nil {
		err = flight.Started(t.Context())
	}
	if flight.Adding() {
		t.Error("an ADD that has ended counts as under way")
	}
	flight.End()
	n.plugin.setUp = nil
	try(err, "ADD b by cri mynet create netns plugin")
	try(n.DetachSandbox(t.Context(), "b"), "DEL b by cri mynet create netns plugin start")

	if _, err = n.Attach(t.Context(), call("asked")); err == nil {
		over := n.Ending("ask")
		err = n.Detach(t.Context(), call("asked"))
		over()
	}
	try(err, "ADD asked by runtime mynet netns plugin", "DEL asked by cri mynet netns plugin")

	n.plugin.setUp = func(context.Context, *cni.Attachment) error { return errFake }
	if _, err := n.Attach(t.Context(), call("c")); err == nil {
		t.Error("ADD succeeds")
	}
	try(nil, "ADD c by runtime mynet netns plugin failed")

	n.plugin.setUp, n.plugin.tear = nil, failTimes(1)
	if _, err := n.Attach(t.Context(), call("d")); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), call("d")); err == nil {
		t.Error("DEL succeeds")
	}
	testkit.Eventually(t, "the queue undoes it", func() bool { return n.Pending() == 0 })
	try(nil, "ADD d by runtime mynet netns plugin", "DEL d by runtime mynet netns plugin failed", "DEL d by crinetd mynet netns plugin")
}

// A trial is an ADD and a DEL of crinetd's own.
func TestTrialIsRecorded(t *testing.T) {
	_, options := withTrials(1)
	kept := &fakeRecorder{}
	n := newNode(t, options, func(c *Config) { c.Recorder = kept })
	if _, err := n.Try(t.Context()); err != nil {
		t.Error(err)
	}
	want := []string{"ADD " + n.trialName + " by trial mynet netns plugin", "DEL " + n.trialName + " by trial mynet netns plugin"}
	if got := kept.kept(); !slices.Equal(got, want) {
		t.Errorf("recorded %q", got)
	}
}
