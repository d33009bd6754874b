package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

func TestRecoverUndoesWhatWasBegunAndWhatAnotherBootLeft(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"attached", "attaching", "detaching", "rebooted"} {
		n.mustAdd(t, id)
	}
	for id, change := range map[string]func(*journal.Record){
		"attaching": func(r *journal.Record) { r.State = journal.Attaching },
		"detaching": func(r *journal.Record) { r.State, r.Tries = journal.Detaching, 3 },
		"rebooted":  func(r *journal.Record) { r.BootID = "another" },
	} {
		n.change(t, id, change)
	}
	restarted := nodeOver(t, &fakePlugin{name: "cni"}, n.journal)
	if err := restarted.Recover(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "only the finished one left", func() bool {
		records, err := restarted.Records()
		return err == nil && len(records) == 1 && records[0].Attachment.ContainerID == "attached"
	})
	for _, a := range restarted.plugin.seen {
		if (a.NetNS == "") != (a.ContainerID == "rebooted") {
			t.Errorf("DEL of %s with netns %q", a.ContainerID, a.NetNS)
		}
	}
}

// change changes a sandbox's record.
func (n *testNode) change(t *testing.T, id string, change func(*journal.Record)) {
	t.Helper()
	r := n.record(t, id)
	change(r)
	if err := n.journal.Put(r); err != nil {
		t.Fatal(err)
	}
}

func TestSweepRemovesSandboxesThatAreGone(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"there", "gone", "young", "young-without-netns"} {
		n.mustAdd(t, id)
	}
	n.flights.settle(key("gone"))
	n.change(t, "young-without-netns", func(r *journal.Record) { r.Attachment.NetNS = "/nonexistent" })
	n.sandboxes.ids["there"] = true
	n.sandboxes.err = errFake
	if err := n.sweep(t.Context()); !errors.Is(err, errFake) {
		t.Errorf("sweep = %v, want the runtime's failure", err)
	}
	if len(n.plugin.seen) != 0 {
		t.Error("networks were removed although the runtime did not say which sandboxes it has")
	}
	n.sandboxes.err = nil
	if err := n.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "gone sandboxes detached", func() bool {
		return n.record(t, "gone") == nil && n.record(t, "young-without-netns") == nil
	})
	if n.record(t, "there") == nil || n.record(t, "young") == nil {
		t.Error("a sandbox that is there, or in the making, lost its network")
	}
}

// An attachment whose RunPodSandbox is under way is never swept, however long it
// takes and whatever the wall clock says (review row A9).
func TestSweepLeavesCallsInFlight(t *testing.T) {
	n := newNode(t)
	flight, err := n.Begin(t.Context(), podNamed("slow"), nil)
	if err != nil {
		t.Fatal(err)
	}
	n.mustAdd(t, "slow")
	n.change(t, "slow", func(r *journal.Record) { r.Created = r.Created.Add(-time.Hour) }) // a step of the clock
	later := time.Now().Add(time.Hour)
	n.now = func() time.Time { return later }
	if err := n.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := n.record(t, "slow"); n.Pending() != 0 || r == nil || r.State != journal.Attached {
		t.Fatalf("an attachment in flight was swept: %+v", r)
	}
	if err := flight.Started(t.Context()); err != nil {
		t.Error(err)
	}
	flight.End()
	if err := n.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "swept after the flight, since the runtime has no such sandbox", func() bool { return n.record(t, "slow") == nil })
}

// An ADD that goes on after its RunPodSandbox was cut off is in flight until it
// ends, and its attachment is left alone for a while then: the runtime may go on
// with the sandbox.
func TestSweepLeavesAnAddWhoseCallWasCutOff(t *testing.T) {
	n := newNode(t)
	flight, err := n.Begin(t.Context(), podNamed("cut"), nil)
	if err != nil {
		t.Fatal(err)
	}
	n.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
		flight.Failed(ctx, true)
		flight.End()
		return n.sweep(ctx)
	}
	n.mustAdd(t, "cut")
	if err := n.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := n.record(t, "cut"); n.Pending() != 0 || r == nil || r.State != journal.Attached || len(n.flights.keys) != 0 {
		t.Fatalf("after a sweep: %d removals pending, record %+v, in flight %v", n.Pending(), r, n.flights.keys)
	}
	start := time.Now()
	n.now = func() time.Time { return start.Add(2 * unlisted) }
	if err := n.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "swept in the end, since the runtime has no such sandbox", func() bool { return n.record(t, "cut") == nil })
}

// A sandbox that somebody asked the runtime for directly may be listed late: the
// monotonic clock counts.
func TestSweepWaitsForDirectSandboxes(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "direct")
	start := time.Now()
	for _, step := range []struct {
		after time.Duration
		swept bool
	}{{unlisted - time.Second, false}, {unlisted + time.Second, true}} {
		n.now = func() time.Time { return start.Add(step.after) }
		if err := n.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if step.swept {
			testkit.Eventually(t, "swept", func() bool { return n.record(t, "direct") == nil })
		} else if n.Pending() != 0 {
			t.Errorf("swept after %v", step.after)
		}
	}
}

// A restart of crinetd cuts calls off that the runtime may go on with.
func TestSweepAfterARestart(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "young")
	n.mustAdd(t, "old")
	n.change(t, "old", func(r *journal.Record) { r.Created = r.Created.Add(-2 * unlisted) })
	restarted := nodeOver(t, &fakePlugin{name: "cni"}, n.journal)
	if err := restarted.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the old one swept", func() bool { return restarted.record(t, "old") == nil })
	if restarted.record(t, "young") == nil {
		t.Error("a sandbox that may be in the making lost its network")
	}
}

func cachedAs(id string) cni.Attachment {
	return cni.Attachment{
		ContainerID: id, IfName: "eth0", NetNS: thisNetNS, Network: "oldnet", ConfList: json.RawMessage(`{"name":"oldnet"}`),
		Args: [][2]string{{"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", "pod-" + id}, {"K8S_POD_UID", "uid-" + id}},
	}
}

// noted is a cached attachment with crinetd's note.
func noted(t *testing.T, id string, change func(*journal.Record)) cni.Attachment {
	t.Helper()
	a := cachedAs(id)
	r := &journal.Record{Plugin: "cni", Pod: podNamed(id), BootID: "boot", Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Attachment: a}
	if change != nil {
		change(r)
	}
	var err error
	if a.Note, err = note(r); err != nil {
		t.Fatal(err)
	}
	return a
}

type fakeCache struct{ attachments []cni.Attachment }

func (c *fakeCache) Cached(containerID string) ([]cni.Attachment, error) {
	var found []cni.Attachment
	for _, a := range c.attachments {
		if containerID == "" || a.ContainerID == containerID {
			found = append(found, a)
		}
	}
	return found, nil
}

func (c *fakeCache) Forget(_ context.Context, a *cni.Attachment) error {
	c.attachments = slices.DeleteFunc(c.attachments, func(b cni.Attachment) bool { return b.ContainerID == a.ContainerID })
	return nil
}

func withCache(cached ...cni.Attachment) func(*Config) {
	return func(c *Config) { c.Cache = &fakeCache{cached} }
}

// A journal that was lost is filled from the cache with what the notes say. What
// has no note is not crinetd's: dockershim, containerd and others keep such
// entries, whose namespaces may be other pods' by now (review row A8).
func TestRestoreFromCache(t *testing.T) {
	mappings, err := hostport.ParseMappings([]hostport.Request{{Protocol: "tcp", HostPort: 80, ContainerPort: 80}})
	if err != nil {
		t.Fatal(err)
	}
	foreign := cachedAs("foreign")
	foreign.NetNS = "/proc/1/ns/net"
	n := newNode(t, withCache(
		noted(t, "kept", func(r *journal.Record) { r.HostPorts = mappings }),
		noted(t, "rebooted", func(r *journal.Record) { r.BootID = "earlier" }),
		foreign,
	))
	n.plugin.tear = failTimes(100) // what is to be undone stays
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	if r := n.record(t, "kept"); r == nil || r.State != journal.Attached || r.Pod != podNamed("kept") || r.BootID != "boot" ||
		r.Created.Year() != 2026 || len(r.HostPorts) != 1 || r.Attachment.Network != "oldnet" || r.Plugin != "cni" {
		t.Errorf("restored record: %+v", r)
	}
	testkit.Eventually(t, "the one of another boot is undone", func() bool { return slices.Contains(n.plugin.log(), "DEL rebooted") })
	if r := n.record(t, "foreign"); r != nil || slices.Contains(n.plugin.log(), "DEL foreign") {
		t.Errorf("an entry of somebody else was touched: %+v, %v", r, n.plugin.log())
	}
}

// What only the cache knows is undone when the runtime has no such sandbox, with
// the configuration of its ADD.
func TestSweepCache(t *testing.T) {
	n := newNode(t, withCache(noted(t, "stale", nil), noted(t, "there", nil), cachedAs("foreign")))
	n.sandboxes.ids["there"] = true
	if err := n.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "stale attachment removed", func() bool { return n.record(t, "stale") == nil && len(n.plugin.log()) == 1 })
	if got := n.plugin.seen[0]; got.ContainerID != "stale" || string(got.ConfList) != `{"name":"oldnet"}` {
		t.Errorf("DEL of %s with the configuration %s, want that of its ADD", got.ContainerID, got.ConfList)
	}
	if r := n.record(t, "there"); r == nil || r.State != journal.Attached {
		t.Errorf("record of a sandbox that the runtime has: %+v, want it restored", r)
	}
}

func TestSweepCacheWithoutRuntime(t *testing.T) {
	n := newNode(t, withCache(noted(t, "a", nil)))
	n.sandboxes.err = errFake
	if err := n.collect(t.Context()); !errors.Is(err, errFake) {
		t.Errorf("collect = %v, want the runtime's failure", err)
	}
	if len(n.plugin.log()) != 0 || n.record(t, "a") != nil {
		t.Error("something was removed although the runtime could not be asked")
	}
}

// A removal that cannot read or write the journal is not lost (review row B5).
func TestQueueSurvivesAFailingJournal(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	n.change(t, "a", func(r *journal.Record) { r.State = journal.Detaching })
	n.journal.failReads(errFake)
	restarted := nodeOver(t, &fakePlugin{name: "cni"}, n.journal)
	restarted.queue.add(&journal.Record{Attachment: cachedAs("a")})
	testkit.Eventually(t, "the journal was asked", func() bool { return n.journal.reads() > 0 })
	if restarted.Pending() != 1 {
		t.Errorf("%d removals pending, want 1", restarted.Pending())
	}
	n.journal.failReads(nil)
	testkit.Eventually(t, "the removal is over", func() bool { return restarted.Pending() == 0 })
}

// Recovery of 500 attachments that stand takes no time worth speaking of.
func TestRecoverManyRecords(t *testing.T) {
	const records, within = 500, 2 * time.Second
	dir := t.TempDir()
	j, _, err := journal.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		a := cachedAs(fmt.Sprintf("%064x", i))
		err := j.Put(&journal.Record{
			State: journal.Attached, Plugin: "cni", Attachment: a, BootID: "boot", Created: time.Now(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	j, _, err = journal.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}()
	n := nodeOver(t, &fakePlugin{name: "cni"}, &failingJournal{Journal: j})
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("%d records in %v", records, took)
	if took > within {
		t.Errorf("recovery of %d records took %v, want %v", records, took, within)
	}
	if n.Pending() != 0 || len(n.plugin.log()) != 0 {
		t.Error("something is undone although nothing is to be")
	}
}
