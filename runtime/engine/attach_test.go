package engine

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

func TestAddThenDel(t *testing.T) {
	n := newNode(t)
	result, err := n.Attach(t.Context(), call("a"))
	if err != nil || string(result) != testResult {
		t.Fatalf("Add = %s, %v", result, err)
	}
	r := n.record(t, "a")
	if r == nil || r.State != journal.Attached || string(r.Attachment.Result) != testResult || r.BootID != "boot" || r.Plugin != "cni" {
		t.Fatalf("record after ADD: %+v", r)
	}
	var steps []string
	for _, s := range r.Steps {
		steps = append(steps, s.Step)
	}
	if diff := cmp.Diff([]string{"netns", "plugin"}, steps); diff != "" {
		t.Errorf("steps of a sandbox that came directly (-want +got):\n%s", diff)
	}
	for range 2 { // the runtime calls DEL twice
		if err := n.Detach(t.Context(), call("a")); err != nil {
			t.Fatal(err)
		}
	}
	if r := n.record(t, "a"); r != nil {
		t.Errorf("record after DEL: %+v", r)
	}
	if diff := cmp.Diff([]string{"ADD a", "DEL a"}, n.plugin.log()); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
}

func TestDelUsesWhatAddUsed(t *testing.T) {
	n := newNode(t)
	c := call("a")
	c.RuntimeConfig = json.RawMessage(`{"dns":{"Servers":["192.0.2.1"]},"mac":"02:00:00:00:00:01"}`)
	if _, err := n.Attach(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	added := n.record(t, "a").Created
	del := call("a")
	del.NetNS, del.Args = "", nil
	if err := n.Detach(t.Context(), del); err != nil {
		t.Fatal(err)
	}
	want := cni.Attachment{
		ContainerID: "a", NetNS: thisNetNS, IfName: "eth0", Args: c.Args, Network: "mynet",
		ConfList: json.RawMessage(`{"name":"mynet"}`), Builtin: []cni.Builtin{{Type: "other"}}, Result: json.RawMessage(testResult),
		CapabilityArgs: map[string]json.RawMessage{
			"dns": json.RawMessage(`{"servers":["192.0.2.1"]}`),
			"mac": json.RawMessage(`"02:00:00:00:00:01"`),
		},
	}
	if diff := cmp.Diff([]cni.Attachment{want}, n.plugin.seen); diff != "" {
		t.Errorf("attachment at DEL (-want +got):\n%s", diff)
	}
	if !n.plugin.begun.Equal(added) {
		t.Errorf("DEL is told that ADD began at %v, want %v", n.plugin.begun, added)
	}
}

func TestAddForSandboxThatHasANetwork(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	n.mustAdd(t, "a")
	if diff := cmp.Diff([]string{"ADD a", "DEL a", "ADD a"}, n.plugin.log()); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
}

func TestAddRefusesWhatIsNoNamespace(t *testing.T) {
	n := newNode(t)
	c := call("a")
	c.NetNS = t.TempDir()
	_, err := n.Attach(t.Context(), c)
	var cniErr *wire.Error
	if !errors.As(err, &cniErr) || cniErr.Code != wire.CodeInvalidNetNS || !strings.Contains(err.Error(), c.NetNS) {
		t.Errorf("Add = %v, want code %d and the path", err, wire.CodeInvalidNetNS)
	}
	if len(n.plugin.log()) != 0 || n.record(t, "a") != nil {
		t.Error("something was done all the same")
	}
}

func TestAddWhileNotReady(t *testing.T) {
	n := newNode(t)
	n.plugin.unready = errors.New("no network there")
	_, err := n.Attach(t.Context(), call("a"))
	var cniErr *wire.Error
	if !errors.As(err, &cniErr) || cniErr.Code != wire.CodeTryAgainLater || !strings.Contains(err.Error(), "no network there") {
		t.Errorf("Add = %v, want code %d and the reason", err, wire.CodeTryAgainLater)
	}
	// Nothing was made: the DEL that follows needs no network either.
	if err := n.Detach(t.Context(), call("a")); err != nil {
		t.Errorf("Detach = %v", err)
	}
	if calls := n.plugin.log(); len(calls) != 0 {
		t.Errorf("plugin calls: %q", calls)
	}
}

func TestFailedAddIsUndone(t *testing.T) {
	n := newNode(t)
	n.plugin.setUp = failTimes(1)
	if _, err := n.Attach(t.Context(), call("a")); !errors.Is(err, errFake) {
		t.Errorf("Add = %v, want the plugin's failure", err)
	}
	if diff := cmp.Diff([]string{"ADD a", "DEL a"}, n.plugin.log()); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
	if r := n.record(t, "a"); r != nil {
		t.Errorf("record left: %+v", r)
	}
}

func TestFailedUndoIsTriedAgain(t *testing.T) {
	n := newNode(t)
	n.plugin.setUp, n.plugin.tear = failTimes(1), failTimes(1)
	if _, err := n.Attach(t.Context(), call("a")); err == nil || !strings.Contains(err.Error(), "crinetd tries again") {
		t.Errorf("Add = %v, want both failures", err)
	}
	r := n.record(t, "a")
	if r == nil || r.State != journal.Detaching || r.Tries != 1 || r.LastError == "" {
		t.Fatalf("record: %+v, want detaching after one try", r)
	}
	testkit.Eventually(t, "record gone", func() bool { return n.record(t, "a") == nil })
}

func TestCancelledAddIsUndone(t *testing.T) {
	n := newNode(t)
	n.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
		<-ctx.Done()
		return ctx.Err()
	}
	n.plugin.tear = func(ctx context.Context, _ *cni.Attachment) error { return ctx.Err() }
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := n.Attach(ctx, call("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("Add = %v, want cancelled", err)
	}
	if r := n.record(t, "a"); r != nil {
		t.Errorf("record left: %+v", r)
	}
}

func TestAddThatSucceedsForNobodyIsUndone(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	n.plugin.setUp = func(context.Context, *cni.Attachment) error { cancel(); return nil }
	if _, err := n.Attach(ctx, call("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("Add = %v, want cancelled", err)
	}
	if r := n.record(t, "a"); r != nil {
		t.Errorf("record left: %+v", r)
	}
}

func TestUnwritableJournalRefusesPodsAndLetsThemGo(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "old")
	n.journal.set(errFake)
	if _, err := n.Attach(t.Context(), call("new")); !errors.As(err, new(*wire.Error)) || !strings.Contains(err.Error(), errFake.Error()) {
		t.Errorf("Add = %v, want a CNI error with the journal's failure", err)
	}
	if err := n.Detach(t.Context(), call("old")); err != nil {
		t.Errorf("Del = %v, want nil: the network is gone", err)
	}
	if diff := cmp.Diff([]string{"ADD old", "DEL old"}, n.plugin.log()[:2]); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
	n.journal.set(nil)
	testkit.Eventually(t, "record gone", func() bool { return n.record(t, "old") == nil })
}

func TestJournalFailingAfterAddUndoes(t *testing.T) {
	n := newNode(t)
	n.plugin.setUp = func(context.Context, *cni.Attachment) error { n.journal.set(errFake); return nil }
	if _, err := n.Attach(t.Context(), call("a")); !errors.Is(err, errFake) {
		t.Errorf("Add = %v, want the journal's failure", err)
	}
	// The queue may have called DEL once more by now, to be rid of the record.
	if diff := cmp.Diff([]string{"ADD a", "DEL a"}, n.plugin.log()[:2]); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
	n.journal.set(nil)
	testkit.Eventually(t, "record gone", func() bool { return n.record(t, "a") == nil })
}

func TestDelThatFailsIsReportedAndTriedAgain(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	n.plugin.tear = failTimes(1)
	if err := n.Detach(t.Context(), call("a")); !errors.Is(err, errFake) {
		t.Errorf("Del = %v, want the failure", err)
	}
	if n.Pending() != 1 {
		t.Errorf("UndoPending = %d, want 1", n.Pending())
	}
	testkit.Eventually(t, "record gone", func() bool { return n.record(t, "a") == nil })
}

func TestUndoNeverHitsALaterAttachment(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	earlier := n.record(t, "a")
	n.mustAdd(t, "a")
	if !n.undo(t.Context(), key("a"), earlier.Created) {
		t.Error("the queue is to try again for an attachment that is not there any more")
	}
	if r := n.record(t, "a"); r == nil || r.State != journal.Attached {
		t.Errorf("record: %+v, want the second attachment untouched", r)
	}
}

func TestDelOfUnknownSandboxCallsSelectedNetworkOnce(t *testing.T) {
	n := newNode(t)
	c := call("ghost")
	c.NetNS = ""
	for range 2 {
		if err := n.Detach(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"DEL ghost"}, n.plugin.log()); diff != "" {
		t.Errorf("plugin calls (-want +got):\n%s", diff)
	}
	if n.plugin.seen[0].Builtin != nil {
		t.Error("the pod may have been networked by binaries, and its DEL is a built-in's")
	}
	n.plugin.unready = errors.New("no network")
	var cniErr *wire.Error
	err := n.Detach(t.Context(), call("ghost2"))
	if !errors.As(err, &cniErr) || cniErr.Code != wire.CodeTryAgainLater || !strings.Contains(err.Error(), "crinetctl forget ghost2") {
		t.Errorf("DEL without a network = %v, want code 11 and the way out: its address would leak", err)
	}
}

func TestCheck(t *testing.T) {
	n := newNode(t)
	var cniErr *wire.Error
	if err := n.Check(t.Context(), key("a")); !errors.As(err, &cniErr) || cniErr.Code != wire.CodeUnknownContainer {
		t.Errorf("Check of an unknown sandbox = %v, want code %d", err, wire.CodeUnknownContainer)
	}
	n.mustAdd(t, "a")
	if err := n.Check(t.Context(), key("a")); err != nil {
		t.Error(err)
	}
}

func TestSandboxesDoNotWaitForEachOther(t *testing.T) {
	n := newNode(t)
	hang, begun := make(chan struct{}), make(chan struct{})
	n.plugin.setUp = func(_ context.Context, a *cni.Attachment) error {
		if a.ContainerID == "hung" {
			close(begun)
			<-hang
		}
		return nil
	}
	done := make(chan error)
	go func() { _, err := n.Attach(context.WithoutCancel(t.Context()), call("hung")); done <- err }()
	<-begun
	for _, id := range []string{"a", "b", "c"} {
		n.mustAdd(t, id)
	}
	// A DEL of the hung sandbox waits for its ADD and gives up with its caller.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := n.Detach(ctx, call("hung")); err == nil || !strings.Contains(err.Error(), "waiting") {
		t.Errorf("Del during ADD = %v, want it to say that it waited", err)
	}
	close(hang)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(n.locks.m) != 0 {
		t.Errorf("%d locks left", len(n.locks.m))
	}
}

func TestCapabilityArgs(t *testing.T) {
	n := newNode(t)
	if _, err := n.podCIDRs.Set("10.1.0.0/16,2001:db8::/64"); err != nil {
		t.Fatal(err)
	}
	c := call("a")
	c.RuntimeConfig = json.RawMessage(`{
		"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"TCP","HostIP":"192.0.2.1"}],
		"bandwidth":{"IngressRate":1000000,"IngressBurst":2147483647,"EgressRate":5,"EgressBurst":6},
		"io.kubernetes.cri.pod-annotations":{"Key":"Value"}}`)
	for _, withPorts := range []bool{false, true} {
		got, err := n.capabilityArgs(c, withPorts)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]json.RawMessage{
			"bandwidth":                         json.RawMessage(`{"ingressRate":1000000,"ingressBurst":2147483647,"egressRate":5,"egressBurst":6}`),
			"io.kubernetes.cri.pod-annotations": json.RawMessage(`{"Key":"Value"}`),
			"ipRanges":                          json.RawMessage(`[[{"subnet":"10.1.0.0/16"}],[{"subnet":"2001:db8::/64"}]]`),
		}
		if withPorts {
			want["portMappings"] = json.RawMessage(`[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"}]`)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("capability args, ports to the plugin: %v (-want +got):\n%s", withPorts, diff)
		}
	}
	for _, bad := range []string{`[]`, `{"dns":7}`, `{"portMappings":{}}`, `{"bandwidth":{"IngressRate":-1}}`} {
		c.RuntimeConfig = json.RawMessage(bad)
		if _, err := n.capabilityArgs(c, true); err == nil {
			t.Errorf("runtimeConfig %s was taken", bad)
		}
	}
}
