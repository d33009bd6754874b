package engine

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

// loggingJournal logs the changes in the plugin's log.
type loggingJournal struct {
	*failingJournal
	plugin *fakePlugin
}

func (j *loggingJournal) note(what string) {
	j.plugin.mu.Lock()
	defer j.plugin.mu.Unlock()
	j.plugin.calls = append(j.plugin.calls, what)
}

func (j *loggingJournal) Put(r *journal.Record) error {
	j.note("put " + string(r.State))
	return j.failingJournal.Put(r)
}

func (j *loggingJournal) PutDurable(r *journal.Record) error {
	j.note("put durably " + string(r.State))
	return j.failingJournal.PutDurable(r)
}

func (j *loggingJournal) Delete(key journal.Key) error {
	j.note("delete")
	return j.failingJournal.Delete(key)
}

// A pod waits for the disk once in its life, before its plugins can take what
// outlives a loss of power.
func TestPodWaitsForTheDiskOnce(t *testing.T) {
	plugin := &fakePlugin{name: "cni"}
	n := newNode(t, func(c *Config) {
		c.Plugin = plugin
		c.Journal = &loggingJournal{failingJournal: c.Journal.(*failingJournal), plugin: plugin}
	})
	flight, err := n.Begin(t.Context(), podNamed("a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	n.mustAdd(t, "a")
	if err := flight.Started(t.Context()); err != nil {
		t.Fatal(err)
	}
	flight.End()
	if err := n.Detach(t.Context(), call("a")); err != nil {
		t.Fatal(err)
	}
	want := []string{"put durably attaching", "ADD a", "put attached", "put attached", "put detaching", "DEL a", "delete"}
	if diff := cmp.Diff(want, plugin.log()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A crinetd that is killed while it removes a pod's network undoes it when it starts
// again, and does not take it for one that stands: its address may be free already.
func TestRemovalThatWasCutOff(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	var during *journal.Record
	n.plugin.tear = func(context.Context, *cni.Attachment) (err error) {
		during, err = n.journal.Journal.Get(call("a").Key()) // what a kill leaves
		return err
	}
	if err := n.Detach(t.Context(), call("a")); err != nil {
		t.Fatal(err)
	}
	if during == nil || during.State != journal.Detaching || n.Stands(during) {
		t.Fatalf("while DEL runs the journal has %+v", during)
	}
	if err := n.journal.Put(during); err != nil {
		t.Fatal(err)
	}
	after := nodeOver(t, &fakePlugin{name: "cni"}, n.journal)
	after.sandboxes.ids["a"] = true
	if err := after.Recover(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "it is undone", func() bool { return after.record(t, "a") == nil })
}

// After a loss of power, records are as they were before ADD, or are there again after
// DEL. All of them are undone.
func TestRecordsAfterALossOfPower(t *testing.T) {
	n := newNode(t)
	for id, state := range map[string]journal.State{"begun": journal.Attaching, "removed": journal.Attached} {
		n.mustAdd(t, id)
		r := n.record(t, id)
		r.State, r.BootID = state, "an earlier boot"
		if state == journal.Attaching {
			r.Attachment.Result = nil
		}
		if err := n.journal.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	after := nodeOver(t, &fakePlugin{name: "cni"}, n.journal)
	if err := after.Recover(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "both are undone", func() bool {
		records, err := after.Records()
		return err == nil && len(records) == 0
	})
	for _, a := range after.plugin.seen {
		if a.NetNS != "" {
			t.Errorf("DEL of %s got the network namespace %s, which is of another boot", a.ContainerID, a.NetNS)
		}
	}
}
