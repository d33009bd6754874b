package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/internal/testkit"
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

// The cache of containerd before 2.0 has no namespace: the runtime is asked, once.
func TestAdoptAsksForTheNamespace(t *testing.T) {
	unnamed, hostNetwork := foreignAs("unnamed"), foreignAs("none")
	unnamed.NetNS, hostNetwork.NetNS = "", ""
	n := newNode(t, withRuntimeCache(unnamed, hostNetwork))
	n.sandboxes.ids = map[string]bool{"unnamed": true, "none": true}
	n.sandboxes.netns = map[string]string{"unnamed": foreignAs("unnamed").NetNS}
	if err := n.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.sandboxes.netns = nil // whoever asks again gets none
	if err := n.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := n.record(t, "unnamed"); r == nil || r.Attachment.NetNS != foreignAs("unnamed").NetNS {
		t.Errorf("record: %+v", r)
	}
	if r := n.record(t, "none"); r != nil {
		t.Errorf("a sandbox without a namespace was adopted: %+v", r)
	}
	// The DEL of one that was not adopted gets the namespace of the call.
	if err := n.Detach(t.Context(), call("none")); err != nil {
		t.Fatal(err)
	}
	if seen := n.plugin.seen; len(seen) != 1 || seen[0].NetNS != call("none").NetNS {
		t.Errorf("DEL: %+v", seen)
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
	testkit.Eventually(t, "undone", func() bool { return n.record(t, "early") == nil })
}

// fakeHostPorts holds what it is told to map.
type fakeHostPorts struct {
	mu     sync.Mutex
	mapped map[string]hostport.Pod // sandbox ID -> pod
}

func (f *fakeHostPorts) Reserve(context.Context, hostport.Pod) (*hostport.Reservation, error) {
	return new(hostport.Reservation), nil
}

func (f *fakeHostPorts) Map(_ context.Context, pod hostport.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mapped[pod.SandboxID] = pod
	return nil
}

func (f *fakeHostPorts) Unmap(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mapped, id)
	return nil
}

// hostPorts of an adopted pod that a plugin maps are held until the pod goes, over
// a restart as well. Those that no plugin has mapped are free.
func TestHostPortsOfAdoptedPodsAreHeld(t *testing.T) {
	early, unmapped := foreignAs("early"), foreignAs("unmapped")
	early.CapabilityArgs[portMappings] = json.RawMessage(`[{"HostPort":80,"ContainerPort":8080,"Protocol":"TCP","HostIP":""}]`)
	early.ConfList = json.RawMessage(`{"name":"mynet","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}`)
	ports := &fakeHostPorts{mapped: make(map[string]hostport.Pod)}
	n := newNode(t, withRuntimeCache(early, unmapped), func(c *Config) { c.HostPorts, c.MapHostPorts = ports, true })
	n.sandboxes.ids = map[string]bool{"early": true, "unmapped": true}
	if err := n.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	held, ok := ports.mapped["early"]
	if !ok || len(ports.mapped) != 1 || !held.Foreign || len(held.Mappings) != 1 || held.Mappings[0].HostPort != 80 {
		t.Errorf("held: %+v", ports.mapped)
	}
	again, err := n.MappedPods() // what a restart begins with
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]hostport.Pod{held}, again, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	if err := n.Detach(t.Context(), call("early")); err != nil || len(ports.mapped) != 0 {
		t.Errorf("after DEL: %v, %+v", err, ports.mapped)
	}
}
