package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/runtime/journal"
)

func TestGates(t *testing.T) {
	var g gates
	end, err := g.add(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, begun := g.collect(t.Context(), "a"); begun {
		t.Error("GC began during an ADD")
	}
	_, endOther, begun := g.collect(t.Context(), "b")
	if !begun {
		t.Fatal("GC did not begin because of an ADD of another network")
	}
	end()
	gcCtx, endGC, begun := g.collect(t.Context(), "a")
	if !begun {
		t.Fatal("GC did not begin after the ADD")
	}
	if _, _, begun := g.collect(t.Context(), "a"); begun {
		t.Error("a second GC began")
	}
	added := make(chan error, 1)
	go func() {
		end, err := g.add(t.Context(), "a")
		if err == nil {
			end()
		}
		added <- err
	}()
	<-gcCtx.Done() // the ADD ends it
	if len(added) != 0 {
		t.Error("ADD did not wait for the end of the GC")
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.add(cancelled, "a"); err == nil {
		t.Error("an ADD whose caller is gone went on")
	}
	endGC()
	if err := <-added; err != nil {
		t.Error(err)
	}
	endOther()
	if len(g.m) != 0 {
		t.Errorf("%d gates left", len(g.m))
	}
}

// fakeCollector is a plugin's cache and its GC.
type fakeCollector struct {
	mu     sync.Mutex
	cached []cni.Attachment
	valid  map[string][]types.GCAttachment // by configuration list
	err    error
}

func (c *fakeCollector) Name() string { return "cni" }

func (c *fakeCollector) Cached() ([]cni.Attachment, error) { return c.cached, nil }

func (c *fakeCollector) GC(_ context.Context, confList json.RawMessage, valid []types.GCAttachment) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.SortFunc(valid, func(a, b types.GCAttachment) int { return strings.Compare(a.ContainerID, b.ContainerID) })
	c.valid[string(confList)] = valid
	return c.err
}

func cachedAs(id string) cni.Attachment {
	return cni.Attachment{
		ContainerID: id, IfName: "eth0", NetNS: thisNetNS, Network: "oldnet", ConfList: json.RawMessage(`{"name":"oldnet"}`),
		Args: [][2]string{{"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", "pod-" + id}, {"K8S_POD_UID", "uid-" + id}},
	}
}

func TestCollect(t *testing.T) {
	n := newNode(t)
	collector := &fakeCollector{valid: make(map[string][]types.GCAttachment)}
	n.Collector, n.GCInterval = collector, time.Hour
	n.mustAdd(t, "pod")
	// One that only the cache has, one that the journal has as well, one that
	// came before crinetd.
	collector.cached = []cni.Attachment{cachedAs("stale"), cachedAs("pod"), cachedAs("early")}
	n.sandboxes.ids = map[string]bool{"pod": true, "early": true}
	if err := n.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []types.GCAttachment{{ContainerID: "early", IfName: "eth0"}, {ContainerID: "pod", IfName: "eth0"}}
	if diff := cmp.Diff(want, collector.valid[`{"name":"mynet"}`]); diff != "" {
		t.Errorf("valid attachments (-want +got):\n%s", diff)
	}
	eventually(t, "stale attachment removed", func() bool { return n.record(t, "stale") == nil && len(n.plugin.log()) == 2 })
	if diff := cmp.Diff([]string{"ADD pod", "DEL stale"}, n.plugin.log()); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
	if got := n.plugin.seen[0]; string(got.ConfList) != `{"name":"oldnet"}` {
		t.Errorf("DEL of the stale attachment has the configuration %s, want that of its ADD", got.ConfList)
	}
}

func TestCollectWaitsForAdd(t *testing.T) {
	n := newNode(t)
	n.Collector = &fakeCollector{valid: make(map[string][]types.GCAttachment)}
	n.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
		if err := n.collect(ctx); !errors.Is(err, errBusy) {
			t.Errorf("GC during ADD = %v, want none", err)
		}
		return nil
	}
	n.mustAdd(t, "a")
	if err := n.collect(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCollectWithoutRuntime(t *testing.T) {
	n := newNode(t)
	n.Collector = &fakeCollector{cached: []cni.Attachment{cachedAs("a")}}
	n.sandboxes.err = errFake
	if err := n.collect(t.Context()); !errors.Is(err, errFake) {
		t.Errorf("GC = %v, want the runtime's failure", err)
	}
	if len(n.plugin.log()) != 0 || n.record(t, "a") != nil {
		t.Error("something was removed although the runtime could not be asked")
	}
}

// An empty journal is filled from the cache: with what the note says, or else
// what the arguments do.
func TestRebuild(t *testing.T) {
	n := newNode(t)
	mappings, err := hostport.ParseMappings([]hostport.Request{{Protocol: "tcp", HostPort: 80, ContainerPort: 80}})
	if err != nil {
		t.Fatal(err)
	}
	noted := cachedAs("noted")
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	noted.Note, err = note(&journal.Record{
		Pod: journal.Pod{Namespace: "n", Name: "p", UID: "u"}, BootID: "earlier", Created: created, HostPorts: mappings,
		Attachment: noted,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Collector = &fakeCollector{cached: []cni.Attachment{noted, cachedAs("bare")}}
	n.plugin.tear = failTimes(100) // what Recover finds to be of another boot stays
	if err := n.Recover(); err != nil {
		t.Fatal(err)
	}
	if r := n.record(t, "noted"); r == nil || r.Pod.Name != "p" || r.BootID != "earlier" || !r.Created.Equal(created) ||
		len(r.HostPorts) != 1 || r.Attachment.Network != "oldnet" {
		t.Errorf("record with a note: %+v", r)
	}
	if r := n.record(t, "bare"); r == nil || r.State != journal.Attached || r.Pod.UID != "uid-bare" || r.BootID != "boot" {
		t.Errorf("record without a note: %+v", r)
	}
	eventually(t, "the one of another boot is undone", func() bool { return slices.Contains(n.plugin.log(), "DEL noted") })
	if slices.Contains(n.plugin.log(), "DEL bare") {
		t.Error("one of this boot was undone")
	}
}

// Recovery of 500 attachments that stand takes no time worth speaking of.
func TestRecoverManyRecords(t *testing.T) {
	const records, within = 500, 2 * time.Second
	dir := t.TempDir()
	j, _, err := journal.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var written []<-chan error
	for i := range records {
		a := cachedAs(fmt.Sprintf("%064x", i))
		written = append(written, j.PutLater(&journal.Record{
			State: journal.Attached, Plugin: "cni", Attachment: a, BootID: "boot", Created: time.Now(),
		}))
	}
	for _, done := range written {
		if err := <-done; err != nil {
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
	if n.undo.waiting() != 0 || len(n.plugin.log()) != 0 {
		t.Error("something is undone although nothing is to be")
	}
}
