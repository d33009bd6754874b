package integration_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// scriptDir is where the test plugin keeps script and record, in the node.
const scriptDir = "/run/testplugin"

// recordedBridge is a bridge whose chain ends with the test plugin.
const recordedBridge = `{"cniVersion": "1.0.0", "name": "recorded", "plugins": [
	{"type": "bridge", "bridge": "recorded0", "isDefaultGateway": true,
	 "ipam": {"type": "host-local", "subnet": "10.20.0.0/16"}},
	{"type": "testplugin", "dir": "` + scriptDir + `"}]}`

// newRecordedNode starts a node whose test plugin records its calls and follows the
// rules of setRules.
func newRecordedNode(t *testing.T, flags ...string) (*testNode, *node.Client) {
	t.Helper()
	n := newNode(t)
	return n, n.startRecorded(flags...)
}

// startRecorded is what newRecordedNode does with a new node.
func (n *testNode) startRecorded(flags ...string) *node.Client {
	n.t.Helper()
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-recorded.conflist", recordedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), flags...)...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	return client
}

func (n *testNode) setRules(rules ...script.Rule) {
	n.t.Helper()
	n.ok(script.SetRules(n.Path(scriptDir), rules...))
}

// calls returns the recorded calls of one verb.
func (n *testNode) calls(verb string) []script.Call {
	n.t.Helper()
	all, err := script.Calls(n.Path(scriptDir))
	n.ok(err)
	return slices.DeleteFunc(all, func(c script.Call) bool { return c.Verb != verb })
}

// The order is the CNI specification's: the sandbox's network namespace is
// there before ADD, and ADD is done before the sandbox's process runs.
func TestOrderOfLifecycleSteps(t *testing.T) {
	t.Parallel()
	const delay = 400 * time.Millisecond
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Do: script.Late, Delay: delay})
	asked := time.Now()
	pod := n.runPod(client, "ordered")
	answered := time.Now()

	adds := n.calls("ADD")
	if len(adds) != 1 {
		t.Fatalf("%d calls of ADD, want 1: %+v", len(adds), adds)
	}
	add := adds[0]
	if !add.NetNSExists {
		t.Errorf("ADD came before the network namespace %s was there", add.NetNS)
	}
	if len(add.Processes) != 0 {
		t.Errorf("ADD came when processes were in the network namespace: %+v", add.Processes)
	}
	started := n.sandboxStart(pod)
	// The kernel tells a process's start in hundredths of a second.
	if added := add.Time.Add(delay); started.Before(added.Add(-10 * time.Millisecond)) {
		t.Errorf("the sandbox's process started at %v, before ADD was done at %v", started, added)
	}

	steps := n.steps(pod)
	trace := fmt.Sprintf("asked %v\n", asked.Format(time.StampMicro))
	for i, step := range steps {
		trace += fmt.Sprintf("%-7s %v + %.6f s\n", step.Step, step.Start.Format(time.StampMicro), step.Seconds)
		if i > 0 && step.Start.Before(steps[i-1].End().Add(-time.Millisecond)) {
			t.Errorf("step %s began before %s was done", step.Step, steps[i-1].Step)
		}
	}
	trace += fmt.Sprintf("ADD at %v, process at %v\nanswered %v", add.Time.Format(time.StampMicro),
		started.Format(time.StampMicro), answered.Format(time.StampMicro))
	t.Log(trace)
	plugin, start := steps[2], steps[3]
	if plugin.Seconds < delay.Seconds() || add.Time.Before(plugin.Start) || add.Time.After(plugin.End()) {
		t.Errorf("ADD, which took %v from %v, is not in the step %+v", delay, add.Time, plugin)
	}
	if started.Add(10*time.Millisecond).Before(start.Start) || started.After(start.End()) {
		t.Errorf("the process's start at %v is not in the step %+v", started, start)
	}
	if steps[0].Start.Before(asked) || start.End().After(answered) {
		t.Error("the steps are not within the call")
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// steps returns the pod's four lifecycle steps as crinetctl shows them.
func (n *testNode) steps(pod *node.Pod) []node.StepTime {
	n.t.Helper()
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	for _, state := range states {
		if state.SandboxID != pod.ID {
			continue
		}
		var names []string
		for _, step := range state.Steps {
			names = append(names, step.Step)
		}
		if want := []string{"create", "netns", "plugin", "start"}; !slices.Equal(names, want) {
			n.t.Fatalf("the pod has the steps %q, want %q", names, want)
		}
		return state.Steps
	}
	n.t.Fatalf("crinetctl pods does not list %s: %+v", pod.ID, states)
	return nil
}

// sandboxStart is when the kernel started the sandbox's process.
func (n *testNode) sandboxStart(pod *node.Pod) time.Time {
	n.t.Helper()
	pid := n.sandboxPID(pod)
	stat, err := os.ReadFile(n.Path(fmt.Sprintf("/proc/%d/stat", pid)))
	n.ok(err)
	// proc_pid_stat(5): field 22, in clock ticks since boot, of which there
	// are a hundred a second; the name in brackets is field 2.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	ticks, err := strconv.ParseInt(fields[22-3], 10, 64)
	n.ok(err)
	var boot, now unix.Timespec
	n.ok(unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot))
	n.ok(unix.ClockGettime(unix.CLOCK_REALTIME, &now))
	return time.Unix(0, now.Nano()-boot.Nano()+ticks*int64(time.Second/100))
}

// sandboxPID is the sandbox's process as the node counts.
func (n *testNode) sandboxPID(pod *node.Pod) int {
	n.t.Helper()
	resp, err := n.client(node.CrinetdSocket).Runtime.PodSandboxStatus(n.ctx,
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	n.ok(err)
	_, rest, found := strings.Cut(resp.GetInfo()["info"], `"pid":`)
	digits, _, _ := strings.Cut(rest, ",")
	pid, err := strconv.Atoi(strings.TrimSpace(digits))
	if !found || err != nil {
		n.t.Fatalf("no pid in the sandbox's status: %v\n%v", err, resp.GetInfo())
	}
	return pid
}
