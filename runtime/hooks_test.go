package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/journal"
)

// unknownField is a field of a CRI that does not exist yet.
var unknownField = protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "from the future")

func runRequest(t *testing.T, id string, network runtimeapi.NamespaceMode) []byte {
	t.Helper()
	return append(encode(t, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "ns", Name: "pod-" + id, Uid: "uid-" + id},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: network},
		}},
	}}), unknownField...)
}

// runtimeThatAdds is a container runtime's RunPodSandbox: it calls ADD, and then
// answers or fails.
func (n *testNode) runtimeThatAdds(t *testing.T, id string, want []byte, failure error) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, request []byte) ([]byte, error) {
		if diff := cmp.Diff(want, request); diff != "" {
			t.Errorf("the request was changed (-want +got):\n%s", diff)
		}
		if _, err := n.Add(ctx, call(id)); err != nil {
			return nil, status.Error(codes.Unknown, err.Error())
		}
		if failure != nil {
			return nil, failure
		}
		n.sandboxes.mu.Lock()
		n.sandboxes.ids[id] = true
		n.sandboxes.mu.Unlock()
		return []byte("answer"), nil
	}
}

func TestRunPodSandboxTakesFourStepsInOrder(t *testing.T) {
	n := newNode(t)
	request := runRequest(t, "a", runtimeapi.NamespaceMode_POD)
	answer, err := n.RunPodSandbox(t.Context(), request, n.runtimeThatAdds(t, "a", request, nil))
	if err != nil || string(answer) != "answer" {
		t.Fatalf("RunPodSandbox = %q, %v", answer, err)
	}
	var got []admin.Step
	eventually(t, "steps in the journal", func() bool {
		pods, err := n.Pods()
		if err != nil || len(pods) != 1 {
			t.Fatalf("Pods() = %v, %v", pods, err)
		}
		got = pods[0].Steps
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
	if len(n.calls.pods) != 0 {
		t.Error("the call is still in flight")
	}
}

func TestRunPodSandboxPassesHostNetwork(t *testing.T) {
	n := newNode(t)
	n.plugin.unready = errors.New("no network")
	request := runRequest(t, "a", runtimeapi.NamespaceMode_NODE)
	answer, err := n.RunPodSandbox(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) {
		return got, nil
	})
	if err != nil || !cmp.Equal(answer, request) {
		t.Errorf("RunPodSandbox of a hostNetwork pod = %q, %v", answer, err)
	}
}

func TestRunPodSandboxRefusesWhileNotReady(t *testing.T) {
	n := newNode(t)
	n.plugin.unready = errors.New("no usable network in /etc/cni/net.d")
	_, err := n.RunPodSandbox(t.Context(), runRequest(t, "a", runtimeapi.NamespaceMode_POD), func(context.Context, []byte) ([]byte, error) {
		t.Error("the call went to the runtime")
		return nil, nil
	})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "ns/pod-a") || !strings.Contains(err.Error(), "no usable network") {
		t.Errorf("RunPodSandbox = %v, want FailedPrecondition with pod and reason", err)
	}
}

func TestRunPodSandboxPassesWhatItCannotDecode(t *testing.T) {
	n := newNode(t)
	refusal := status.Error(codes.InvalidArgument, "not a message")
	_, err := n.RunPodSandbox(t.Context(), []byte{0xff}, func(context.Context, []byte) ([]byte, error) { return nil, refusal })
	if !errors.Is(err, refusal) {
		t.Errorf("RunPodSandbox = %v, want the runtime's word", err)
	}
}

func TestSandboxThatFailsAfterAdd(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure error
		has     bool
		gone    bool
	}{
		{"forgotten by the runtime", status.Error(codes.Unknown, "shim died"), false, true},
		{"kept by the runtime for StopPodSandbox", status.Error(codes.Unknown, "shim died"), true, false},
		{"outcome unknown", status.Error(codes.Unavailable, "connection lost"), false, false},
		{"caller gone", status.Error(codes.Canceled, "cancelled"), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.sandboxes.ids["a"] = c.has
			request := runRequest(t, "a", runtimeapi.NamespaceMode_POD)
			if _, err := n.RunPodSandbox(t.Context(), request, n.runtimeThatAdds(t, "a", request, c.failure)); !errors.Is(err, c.failure) {
				t.Errorf("RunPodSandbox = %v, want %v", err, c.failure)
			}
			if gone := n.record(t, "a") == nil; gone != c.gone {
				t.Errorf("network gone: %v, want %v", gone, c.gone)
			}
		})
	}
}

func TestStopAndRemoveMakeSureThatTheNetworkIsGone(t *testing.T) {
	stop := func(id string) []byte {
		return append(encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}), unknownField...)
	}
	remove := func(id string) []byte {
		return append(encode(t, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}), unknownField...)
	}
	n := newNode(t)
	for _, c := range []struct {
		name    string
		hook    func(context.Context, []byte, func(context.Context, []byte) ([]byte, error)) ([]byte, error)
		request func(string) []byte
	}{
		{"stop", func(ctx context.Context, r []byte, next func(context.Context, []byte) ([]byte, error)) ([]byte, error) {
			return n.StopPodSandbox(ctx, r, next)
		}, stop},
		{"remove", func(ctx context.Context, r []byte, next func(context.Context, []byte) ([]byte, error)) ([]byte, error) {
			return n.RemovePodSandbox(ctx, r, next)
		}, remove},
	} {
		for _, id := range []string{c.name + "-full", c.name + "-prefix"} {
			n.mustAdd(t, id+"0123456789")
			request := c.request(strings.Replace(id, "-full", "-full0123456789", 1))
			for range 2 {
				answer, err := c.hook(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) { return got, nil })
				if err != nil || !cmp.Equal(answer, request) {
					t.Fatalf("%s %s = %q, %v", c.name, id, answer, err)
				}
			}
			if r := n.record(t, id+"0123456789"); r != nil {
				t.Errorf("%s %s: record left: %+v", c.name, id, r)
			}
		}
	}
}

func TestStopLeavesTheNetworkWhenTheRuntimeFails(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	refusal := status.Error(codes.Unknown, "cannot kill")
	request := encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "a"})
	if _, err := n.StopPodSandbox(t.Context(), request, func(context.Context, []byte) ([]byte, error) { return nil, refusal }); !errors.Is(err, refusal) {
		t.Errorf("StopPodSandbox = %v, want the runtime's error", err)
	}
	if n.record(t, "a") == nil {
		t.Error("the network of a sandbox that may still run was removed")
	}
}

func TestStopReportsANetworkThatStays(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "a")
	n.plugin.tear = failTimes(1)
	request := encode(t, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "a"})
	_, err := n.StopPodSandbox(t.Context(), request, func(context.Context, []byte) ([]byte, error) { return nil, nil })
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), errFake.Error()) {
		t.Errorf("StopPodSandbox = %v, want Internal with the plugin's failure", err)
	}
}

func TestAmbiguousPrefixIsLeftAlone(t *testing.T) {
	n := newNode(t)
	n.mustAdd(t, "ab1")
	n.mustAdd(t, "ab2")
	if err := n.detachSandbox(t.Context(), "ab"); err != nil {
		t.Error(err)
	}
	if n.record(t, "ab1") == nil || n.record(t, "ab2") == nil {
		t.Error("a sandbox lost its network for the prefix of another")
	}
}

func statusResponse(t *testing.T, conditions ...*runtimeapi.RuntimeCondition) []byte {
	t.Helper()
	return append(encode(t, &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: conditions}, Info: map[string]string{"config": "{}"},
	}), unknownField...)
}

func (n *testNode) status(t *testing.T, verbose bool, upstream []byte) *runtimeapi.StatusResponse {
	t.Helper()
	request := encode(t, &runtimeapi.StatusRequest{Verbose: verbose})
	answer, err := n.Status(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) {
		if !cmp.Equal(got, request) {
			t.Error("the request was changed")
		}
		return upstream, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var resp runtimeapi.StatusResponse
	if err := proto.Unmarshal(answer, &resp); err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal([]byte(resp.ProtoReflect().GetUnknown()), unknownField) {
		t.Error("an unknown field was lost")
	}
	return &resp
}

func TestStatusConditionIsCrinets(t *testing.T) {
	n := newNode(t)
	runtimeReady := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	upstream := statusResponse(t, runtimeReady, &runtimeapi.RuntimeCondition{
		Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: "cni plugin not initialized",
	})
	check := func(what string, got *runtimeapi.StatusResponse, want *runtimeapi.RuntimeCondition) {
		t.Helper()
		conditions := got.GetStatus().GetConditions()
		if len(conditions) != 2 || !proto.Equal(conditions[0], runtimeReady) || !proto.Equal(conditions[1], want) {
			t.Errorf("%s: conditions %v, want %v and %v", what, conditions, runtimeReady, want)
		}
	}
	check("ready", n.status(t, false, upstream), &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true})
	check("ready, the runtime has no opinion", n.status(t, false, statusResponse(t, runtimeReady)),
		&runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true})

	n.Notice = func() string { return "10-broken.conf: no JSON" }
	check("ready, with a notice", n.status(t, false, upstream), &runtimeapi.RuntimeCondition{
		Type: runtimeapi.NetworkReady, Status: true, Message: "10-broken.conf: no JSON",
	})
	n.plugin.unready = errors.New("no network named x")
	want := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: "no network named x"}
	check("not ready", n.status(t, false, statusResponse(t, runtimeReady, &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true})), want)

	n.plugin.name = "noop"
	kept := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true, Message: "noop: no network named x"}
	check("noop", n.status(t, false, statusResponse(t, runtimeReady, &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true})), kept)
}

func TestStatusVerboseTellsMore(t *testing.T) {
	n := newNode(t)
	if info := n.status(t, false, statusResponse(t)).GetInfo(); len(info) != 1 {
		t.Errorf("info without verbose: %v", info)
	}
	info := n.status(t, true, statusResponse(t)).GetInfo()
	var view admin.Status
	if err := json.Unmarshal([]byte(info["crinet"]), &view); err != nil {
		t.Fatal(err)
	}
	if view.Plugin != "cni" || !view.Ready || info["config"] != "{}" {
		t.Errorf("verbose info: %v", info)
	}
}

func TestUpdateRuntimeConfig(t *testing.T) {
	n := newNode(t)
	update := func(cidr string) (passed bool, err error) {
		request := append(encode(t, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
			NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr},
		}}), unknownField...)
		_, err = n.UpdateRuntimeConfig(t.Context(), request, func(_ context.Context, got []byte) ([]byte, error) {
			passed = cmp.Equal(got, request)
			return nil, nil
		})
		return passed, err
	}
	if passed, err := update("10.1.0.0/16,2001:db8::/64"); err != nil || !passed {
		t.Errorf("UpdateRuntimeConfig = %v, passed on: %v", err, passed)
	}
	if got := n.View().PodCIDRs; !cmp.Equal(got, []string{"10.1.0.0/16", "2001:db8::/64"}) {
		t.Errorf("pod CIDRs %v", got)
	}
	if passed, err := update("nonsense"); status.Code(err) != codes.InvalidArgument || passed {
		t.Errorf("UpdateRuntimeConfig(nonsense) = %v, passed on: %v; want InvalidArgument", err, passed)
	}
	if passed, err := update(""); err != nil || !passed {
		t.Errorf("UpdateRuntimeConfig without a CIDR = %v, passed on: %v", err, passed)
	}
}

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
		r := n.record(t, id)
		change(r)
		if err := n.journal.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	restarted := nodeOver(t, &fakePlugin{name: "cni"}, n.journal)
	if err := restarted.Recover(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "only the finished one left", func() bool {
		pods, err := restarted.Pods()
		return err == nil && len(pods) == 1 && pods[0].SandboxID == "attached"
	})
	for _, a := range restarted.plugin.seen {
		if (a.NetNS == "") != (a.ContainerID == "rebooted") {
			t.Errorf("DEL of %s with netns %q", a.ContainerID, a.NetNS)
		}
	}
}

func TestReconcileRemovesSandboxesThatAreGone(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"there", "gone", "young", "young-without-netns"} {
		n.mustAdd(t, id)
	}
	for _, id := range []string{"there", "gone", "young-without-netns"} {
		r := n.record(t, id)
		if id == "young-without-netns" {
			r.Attachment.NetNS = "/nonexistent"
		} else {
			r.Created = r.Created.Add(-2 * youngest)
		}
		if err := n.journal.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	n.sandboxes.ids["there"] = true
	n.sandboxes.err = errFake
	if err := n.reconcile(t.Context()); !errors.Is(err, errFake) {
		t.Errorf("reconcile = %v, want the runtime's failure", err)
	}
	if len(n.plugin.seen) != 0 {
		t.Error("networks were removed although the runtime did not say which sandboxes it has")
	}
	n.sandboxes.err = nil
	if err := n.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone sandboxes detached", func() bool {
		return n.record(t, "gone") == nil && n.record(t, "young-without-netns") == nil
	})
	if n.record(t, "there") == nil || n.record(t, "young") == nil {
		t.Error("a sandbox that is there, or in the making, lost its network")
	}
}
