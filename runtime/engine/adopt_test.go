package engine

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/journal"
)

// foreignAs is an attachment that the runtime made itself.
func foreignAs(id string) cni.Attachment {
	a := cachedAs(id)
	a.CacheDir = "/var/lib/cni"
	a.Result = json.RawMessage(testResult)
	a.CapabilityArgs = map[string]json.RawMessage{"portMappings": json.RawMessage(`[{"HostPort":80}]`)}
	return a
}

func withRuntimeCache(cached ...cni.Attachment) func(*Config) {
	return func(c *Config) { c.RuntimeCache = &fakeCache{cached} }
}

// Pods from before crinetd are adopted with all that their ADD had, and undone
// with it.
func TestAdopt(t *testing.T) {
	gone := foreignAs("gone") // the runtime has no such sandbox: somebody else's, or a leftover
	stopped := foreignAs("stopped")
	stopped.NetNS = "/nonexistent"
	n := newNode(t, withRuntimeCache(foreignAs("early"), gone, stopped, foreignAs("known")))
	n.mustAdd(t, "known")
	n.sandboxes.ids = map[string]bool{"early": true, "stopped": true, "known": true}
	for range 2 {
		if err := n.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r := n.record(t, "early")
	if r == nil || !r.Adopted || r.State != journal.Attached || r.Pod != podNamed("early") || r.Plugin != "cni" {
		t.Fatalf("record: %+v", r)
	}
	if diff := cmp.Diff(foreignAs("early"), r.Attachment); diff != "" {
		t.Errorf("attachment (-want +got):\n%s", diff)
	}
	if known := n.record(t, "known"); known.Adopted {
		t.Error("crinetd's own attachment was adopted")
	}
	for _, id := range []string{"gone", "stopped"} {
		if r := n.record(t, id); r != nil {
			t.Errorf("%s was adopted: %+v", id, r)
		}
	}
	if err := n.Check(t.Context(), key("early")); err != nil {
		t.Error(err)
	}
	if err := n.Detach(t.Context(), call("early")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]cni.Attachment{foreignAs("early")}, n.plugin.seen); diff != "" {
		t.Errorf("DEL (-want +got):\n%s", diff)
	}
	if n.record(t, "early") != nil {
		t.Error("record left")
	}
}

// DEL of a pod that was not adopted yet, or that stopped before crinetd came,
// uses the runtime's own record of it, whatever network is selected now.
func TestDelOfAPodFromBefore(t *testing.T) {
	stopped := foreignAs("stopped")
	stopped.NetNS = "/nonexistent"
	n := newNode(t, withRuntimeCache(stopped))
	n.plugin.unready = errors.New("no network is selected")
	if err := n.Detach(t.Context(), call("stopped")); err != nil {
		t.Fatal(err)
	}
	stopped.NetNS = ""
	if diff := cmp.Diff([]cni.Attachment{stopped}, n.plugin.seen); diff != "" {
		t.Errorf("DEL (-want +got):\n%s", diff)
	}
	var said *wire.Error
	if err := n.Detach(t.Context(), call("unknown")); !errors.As(err, &said) || said.Code != wire.CodeTryAgainLater {
		t.Errorf("DEL of a sandbox that nobody knows = %v, want code 11", err)
	}
}

// A DEL of an adopted pod that fails is tried again like any other.
func TestFailedDelOfAPodFromBefore(t *testing.T) {
	n := newNode(t, withRuntimeCache(foreignAs("early")))
	n.plugin.tear = failTimes(1)
	if err := n.Detach(t.Context(), call("early")); !errors.Is(err, errFake) {
		t.Errorf("DEL = %v, want the plugin's failure", err)
	}
	if r := n.record(t, "early"); r == nil || r.State != journal.Detaching || !r.Adopted {
		t.Errorf("record: %+v", r)
	}
	eventually(t, "undone", func() bool { return n.record(t, "early") == nil })
}
