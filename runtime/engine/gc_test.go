package engine

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

func TestGateKeepsGCAndOperationsApart(t *testing.T) {
	var g gates
	leave, err := g.enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	_, endOther, err := g.exclude(t.Context(), "b")
	if err != nil {
		t.Fatalf("GC did not begin because of an ADD of another network: %v", err)
	}
	begun := make(chan func(), 1)
	go func() {
		_, end, err := g.exclude(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		begun <- end
	}()
	testkit.Eventually(t, "GC waits", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.m["a"].opened != nil })
	entered := make(chan func(), 1)
	go func() {
		leave, err := g.enter(t.Context(), "a")
		if err != nil {
			t.Error(err)
		}
		entered <- leave
	}()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.enter(cancelled, "a"); err == nil {
		t.Error("an ADD whose caller is gone went on")
	}
	leave()
	endGC := <-begun
	if _, _, err := g.exclude(t.Context(), "a"); err == nil {
		t.Error("a second GC began")
	}
	if len(entered) != 0 {
		t.Error("an ADD did not wait for the GC")
	}
	endGC()
	(<-entered)()
	endOther()
	if len(g.m) != 0 {
		t.Errorf("%d gates left", len(g.m))
	}
}

// An operation that hangs keeps GC from beginning, and GC holds up no others.
func TestHungOperationEndsTheWaitOfGC(t *testing.T) {
	var g gates
	leave, err := g.enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.exclude(t.Context(), "a"); !errors.Is(err, errBusy) {
		t.Errorf("GC beside an operation that hangs = %v, want %v", err, errBusy)
	}
	second, err := g.enter(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	second()
	leave()
}

// fakeGC is the verb GC of networks.
type fakeGC struct {
	mu    sync.Mutex
	none  bool                            // no network takes GC
	valid map[string][]types.GCAttachment // configuration list -> what it was told
	err   error
	calls int
}

func (c *fakeGC) CollectsGarbage(json.RawMessage) bool { return !c.none }

func (c *fakeGC) GC(_ context.Context, confList json.RawMessage, valid []types.GCAttachment) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(valid, func(a, b types.GCAttachment) int { return strings.Compare(a.ContainerID, b.ContainerID) })
	if c.valid == nil {
		c.valid = make(map[string][]types.GCAttachment)
	}
	c.valid[string(confList)] = valid
	c.calls++
	return c.err
}

func withGC(gc GarbageCollector) func(*Config) {
	return func(c *Config) { c.GC, c.GCInterval = gc, time.Hour }
}

func TestCollectTellsWhatIsValid(t *testing.T) {
	gc := new(fakeGC)
	n := newNode(t, withGC(gc))
	n.mustAdd(t, "pod")
	n.sandboxes.ids = map[string]bool{"pod": true, "early": true} // one came before crinetd
	if err := n.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []types.GCAttachment{{ContainerID: "early", IfName: "eth0"}, {ContainerID: "pod", IfName: "eth0"}}
	if diff := cmp.Diff(want, gc.valid[`{"name":"mynet"}`]); diff != "" {
		t.Errorf("valid attachments (-want +got):\n%s", diff)
	}
}

// Networks without GC cost nothing (review row B7).
func TestCollectWithoutUse(t *testing.T) {
	gc := &fakeGC{none: true}
	n := newNode(t, withGC(gc))
	n.mustAdd(t, "pod")
	if err := n.collect(t.Context()); err != nil || gc.calls != 0 {
		t.Errorf("collect = %v after %d calls of GC, want none", err, gc.calls)
	}
}

// GC completes while pods come and go without a pause (review row B7).
func TestCollectUnderChurn(t *testing.T) {
	gc := new(fakeGC)
	n := newNode(t, withGC(gc))
	n.plugin.setUp = func(context.Context, *cni.Attachment) error { time.Sleep(time.Millisecond); return nil }
	ctx, stop := context.WithCancel(t.Context())
	var churn sync.WaitGroup
	for _, id := range []string{"a", "b", "c"} {
		churn.Go(func() {
			for ctx.Err() == nil {
				if _, err := n.Attach(t.Context(), call(id)); err != nil {
					t.Error(err)
					return
				}
				if err := n.Detach(t.Context(), call(id)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		if err := n.collect(t.Context()); err != nil {
			t.Errorf("GC under churn: %v", err)
		}
	}
	stop()
	churn.Wait()
	if gc.calls != 5 {
		t.Errorf("GC was run %d times, want 5", gc.calls)
	}
}

// The runtime's own GC undoes what it does not list, but for sandboxes in the
// making.
func TestCollectForTheRuntime(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"valid", "stale", "making"} {
		n.mustAdd(t, id)
	}
	n.flights.settle(key("stale"))
	if err := n.Collect(t.Context(), []types.GCAttachment{{ContainerID: "valid", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	for id, stays := range map[string]bool{"valid": true, "stale": false, "making": true} {
		if r := n.record(t, id); (r != nil) != stays || stays && r.State != journal.Attached {
			t.Errorf("%s after GC: %+v", id, r)
		}
	}
}
