package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// otherBridge is another network than recordedBridge.
const otherBridge = `{"cniVersion": "1.0.0", "name": "other", "plugins": [
	{"type": "bridge", "bridge": "other0", "isDefaultGateway": true,
	 "ipam": {"type": "host-local", "subnet": "10.21.0.0/16"}}]}`

const recordedFile = "10-recorded.conflist"

// While a plugin hangs in the ADD of one pod, other pods come and go, the
// configuration changes, and Status answers at once.
func TestHungPluginHoldsUpNobody(t *testing.T) {
	t.Parallel()
	const others, workers, slowest = 20, 4, 50 * time.Millisecond
	// containerd's go-cni reloads its configuration under a lock that ADD holds. A
	// change in its conf dir would wait for the hung ADD, and all other pods for
	// the reload. That is why it has a conf dir of its own here.
	n := newNodeOf(t, node.Options{RuntimeConfDir: ownConfDir})
	client := n.startRecorded("--cni-timeout=150s")
	n.setRules(script.Rule{Verb: "ADD", Pod: "hung", Do: script.Hang})
	hungCtx, giveUp := context.WithCancel(n.ctx)
	hung := n.startPod(hungCtx, client, "hung")

	watchCtx, stop := context.WithCancel(n.ctx)
	answers := make(chan []time.Duration, 1)
	go func() { answers <- statusTimes(watchCtx, client) }()
	names := make(chan string)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for name := range names {
				pod, err := client.RunPod(n.ctx, n.PodConfig(name))
				if err == nil {
					err = pod.StopAndRemove(n.ctx)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range others {
		if i%5 == 0 {
			n.ok(n.WriteConf("05-other.conflist", strings.NewReplacer("10.21.", fmt.Sprintf("10.%d.", 30+i), "other0", fmt.Sprintf("other%d", i)).Replace(otherBridge)))
		}
		names <- fmt.Sprintf("other-%d", i)
	}
	close(names)
	group.Wait()
	stop()
	times := <-answers
	slices.Sort(times)
	p99 := times[len(times)*99/100]
	t.Logf("%d answers of Status: median %v, 99 of 100 within %v, slowest %v", len(times), times[len(times)/2], p99, times[len(times)-1])
	if times[len(times)/2] > slowest {
		t.Errorf("half of Status' answers took longer than %v", times[len(times)/2])
	}
	if len(hung) != 0 {
		t.Error("the hung pod did not hang until the end")
	}
	giveUp()
	if err := <-hung; err == nil {
		t.Error("the hung pod came up")
	}
	n.removeAll(client)
	n.clean()
}

// If only one chain may run at once, an ADD that hangs holds up no DEL. It holds up
// another ADD only until it counts as hung.
func TestHungAddWithOneLane(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	client := n.startRecorded("--cni-timeout=150s", "--cni-max-chains=1")
	first := n.runPod(client, "first")
	n.setRules(script.Rule{Verb: "ADD", Pod: "hung", Do: script.Hang})
	hungCtx, giveUp := context.WithCancel(n.ctx)
	hung := n.startPod(hungCtx, client, "hung")
	began := time.Now()
	n.ok(first.StopAndRemove(n.ctx))
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("a DEL took %v beside an ADD that hangs", took)
	}
	second := n.runPod(client, "second")
	if took := time.Since(began); took > time.Minute {
		t.Errorf("another ADD took %v beside one that hangs", took)
	}
	if len(hung) != 0 {
		t.Error("the hung pod did not hang until the end")
	}
	giveUp()
	if err := <-hung; err == nil {
		t.Error("the hung pod came up")
	}
	n.ok(second.StopAndRemove(n.ctx))
	n.removeAll(client)
	n.clean()
}

// When the shared conf dir changes while an ADD hangs, containerd's Status waits for
// the lock that the ADD holds. crinetd's Status does not wait for containerd.
func TestStatusWhileContainerdIsLocked(t *testing.T) {
	t.Parallel()
	const slowest = 500 * time.Millisecond // it is a loaded machine
	n := newSharedNode(t)
	client := n.startRecorded()
	n.setRules(script.Rule{Verb: "ADD", Pod: "hung", Do: script.Hang})
	hungCtx, giveUp := context.WithCancel(n.ctx)
	hung := n.startPod(hungCtx, client, "hung")
	n.ok(n.WriteConf("05-other.conflist", otherBridge))
	n.awaitSelection("other")
	direct, cancel := context.WithTimeout(n.ctx, slowest)
	_, err := n.client(node.ContainerdSocket).Runtime.Status(direct, &runtimeapi.StatusRequest{})
	cancel()
	t.Logf("containerd itself answers Status with: %v", err)
	ctx, stop := context.WithTimeout(n.ctx, 2*time.Second)
	times := statusTimes(ctx, client)
	stop()
	slices.Sort(times)
	if len(times) == 0 || times[len(times)-1] > slowest {
		t.Fatalf("answers of Status took %v, want each within %v", times, slowest)
	}
	t.Logf("%d answers of crinetd: median %v, slowest %v", len(times), times[len(times)/2], times[len(times)-1])
	giveUp()
	if err := <-hung; err == nil {
		t.Error("the hung pod came up")
	}
	n.removeAll(client)
	n.clean()
}

// statusTimes asks for Status again and again until ctx ends.
func statusTimes(ctx context.Context, client *node.Client) (times []time.Duration) {
	for ctx.Err() == nil {
		began := time.Now()
		if _, err := client.Runtime.Status(ctx, &runtimeapi.StatusRequest{}); err == nil {
			times = append(times, time.Since(began))
		}
		time.Sleep(5 * time.Millisecond)
	}
	return times
}

// startPod begins to run a pod and returns when the plugin has been called for it.
// The channel gets RunPod's outcome.
func (n *testNode) startPod(ctx context.Context, client *node.Client, name string) <-chan error {
	n.t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := client.RunPod(ctx, n.PodConfig(name))
		done <- err
	}()
	n.awaitCall("ADD", name)
	return done
}

// awaitCall waits until the plugin was called for a pod.
func (n *testNode) awaitCall(verb, pod string) {
	n.t.Helper()
	n.eventually("no "+verb+" of "+pod, func() bool {
		return slices.ContainsFunc(n.calls(verb), func(c script.Call) bool { return c.Pod == pod })
	})
}

// eventually waits until a condition holds.
func (n *testNode) eventually(otherwise string, holds func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(cleanTimeout); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatal("not in time: " + otherwise)
		}
	}
}

// clean checks that nothing is left.
func (n *testNode) clean() {
	n.t.Helper()
	if left := n.leftovers(); len(left) != 0 {
		n.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// When a plugin fails DEL, the other plugins of the chain are called all the same.
// The failed one is called again until it succeeds, also by a crinetd that was
// killed and started again.
func TestFailingDelIsTriedAgain(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod := n.runPod(client, "stuck")
	n.setRules(script.Rule{Verb: "DEL", Do: script.Fail, Text: "the tide is out"})
	if err := pod.Stop(n.ctx); err == nil || !strings.Contains(err.Error(), "the tide is out") {
		t.Errorf("StopPodSandbox answers %v, want the plugin's words", err)
	}
	n.eventually("address and veth freed by the bridge plugin", func() bool {
		left, err := n.Leftovers(n.ctx)
		n.ok(err)
		return !slices.ContainsFunc(left, func(s string) bool {
			return strings.HasPrefix(s, "address") || strings.HasPrefix(s, "veth")
		})
	})
	status, err := n.Crinetctl(n.ctx, "status", "-o", "json")
	n.ok(err)
	if !strings.Contains(status, `"undoPending"`) || strings.Contains(status, `"undoPending": 0`) {
		t.Errorf("crinetctl status does not tell of the pending removal:\n%s", status)
	}
	n.ok(n.KillCrinetd())
	before := len(n.calls("DEL"))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.eventually("DEL called again after the restart", func() bool { return len(n.calls("DEL")) > before+1 })
	n.setRules()
	n.eventually("removal finished without anybody asking", func() bool {
		states, err := n.PodStates(n.ctx)
		n.ok(err)
		return len(states) == 0
	})
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}

// DEL uses what ADD used: after another network has taken the file's place, after
// the file was deleted, and while the plugin's binary is away.
func TestDelAfterChange(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	conf := node.ConfDir + "/" + recordedFile
	plugin := node.BinDir + "/testplugin"
	for _, c := range []struct {
		name     string
		change   func() error
		repair   func() error
		selected string // after the change
	}{
		{"changed", func() error { return n.WriteConf(recordedFile, otherBridge) },
			func() error { return n.WriteConf(recordedFile, recordedBridge) }, "other"},
		{"deleted", func() error { return n.do("rm", conf) },
			func() error { return n.WriteConf(recordedFile, recordedBridge) }, ""},
		{"unplugged", func() error { return n.do("mv", plugin, plugin+".away") },
			func() error { return n.do("mv", plugin+".away", plugin) }, ""},
	} {
		pod := n.runPod(client, c.name)
		dels := len(n.calls("DEL"))
		n.ok(c.change())
		n.awaitSelection(c.selected)
		if err := pod.StopAndRemove(n.ctx); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		n.clean()
		calls := n.calls("DEL")[dels:]
		if len(calls) == 0 || !strings.Contains(string(calls[0].Config), `"name":"recorded"`) ||
			!strings.Contains(string(calls[0].Config), "prevResult") {
			t.Errorf("%s: the plugin's DEL was not that of its ADD: %+v", c.name, calls)
		}
		n.ok(c.repair())
		n.awaitSelection("recorded")
	}
}

// awaitSelection waits until crinetd has selected the network.
func (n *testNode) awaitSelection(network string) {
	n.t.Helper()
	n.eventually("network "+network+" selected", func() bool {
		status, err := n.Crinetctl(n.ctx, "status", "-o", "json")
		n.ok(err)
		var selected struct{ Network string }
		n.ok(json.Unmarshal([]byte(status), &selected))
		return selected.Network == network
	})
}

// do runs a command in the node.
func (n *testNode) do(name string, args ...string) error {
	_, err := n.Run(n.ctx, name, args...)
	return err
}

// A containerd that dies during ADD does not know the sandbox afterwards, and
// crinetd removes the sandbox's network.
func TestContainerdKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	for _, socket := range []string{node.CrinetdSocket, node.ContainerdSocket} {
		name := "through-" + strings.Split(socket, "/")[2]
		n.setRules(script.Rule{Verb: "ADD", Pod: name, Do: script.Late, Delay: 700 * time.Millisecond})
		failed := n.startPod(n.ctx, n.client(socket), name)
		n.ok(n.KillContainerd())
		if err := <-failed; err == nil {
			t.Errorf("%s: the pod came up although containerd died", name)
		}
		n.ok(n.StartContainerd(n.ctx))
		n.awaitNetwork(client, true)
		n.removeAll(client)
		began := time.Now()
		// containerd itself forgets the network namespace.
		n.clean()
		t.Logf("%s: clean after %v", name, time.Since(began).Round(time.Millisecond))
	}
}

// A sandbox whose start fails after ADD loses its network, also if containerd's DEL
// fails; containerd does not repeat it.
func TestSandboxThatFailsAfterAdd(t *testing.T) {
	t.Parallel()
	n := newNodeOf(t, node.Options{ContainerdConfig: `
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.broken]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.broken.options]
      BinaryName = "/no/such/runc"
`})
	client := n.startRecorded()
	for _, rule := range []script.Rule{{}, {Verb: "DEL", Call: 2, Do: script.Fail}} {
		n.setRules(rule)
		config := n.portPod("broken" + string(rule.Do))
		_, err := client.Runtime.RunPodSandbox(n.ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "broken"})
		if err == nil || !strings.Contains(err.Error(), "runc") {
			t.Errorf("the sandbox's start ends with %v, want an error about runc", err)
		}
		n.removeAll(client)
		n.clean()
	}
	if adds := len(n.calls("ADD")); adds != 2 {
		t.Errorf("ADD was called %d times, want 2: the sandboxes did not get as far", adds)
	}
	if dels := len(n.calls("DEL")); dels < 3 {
		t.Errorf("DEL was called %d times, want 3 or more", dels)
	}
}

// A plugin that hangs when crinetd is killed is ended before the next crinetd undoes
// its work.
func TestOrphanedPluginIsEnded(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Pod: "orphan", Do: script.Hang})
	failed := n.startPod(n.ctx, client, "orphan")
	n.ok(n.KillCrinetd())
	if err := <-failed; err == nil {
		t.Error("the pod came up although crinetd died")
	}
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.removeAll(client)
	n.clean()
}

// At SIGTERM crinetd lets calls under way finish within the grace. A call that hangs
// is undone by the next crinetd. The exit code is 0 in both cases.
func TestShutdown(t *testing.T) {
	t.Parallel()
	const grace = time.Second
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Pod: "slow", Do: script.Late, Delay: 1500 * time.Millisecond})
	slow := n.startPod(n.ctx, client, "slow")
	n.ok(n.StopCrinetd())
	if err := <-slow; err != nil {
		t.Errorf("a pod that came up within the grace was cut off: %v", err)
	}
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--shutdown-grace=" + grace.String()}, cniFlags...)...))
	n.awaitNetwork(client, true)
	n.setRules(script.Rule{Verb: "ADD", Pod: "hung", Do: script.Hang})
	hung := n.startPod(n.ctx, client, "hung")
	began := time.Now()
	n.ok(n.StopCrinetd())
	t.Logf("crinetd ended %v after SIGTERM, with a grace of %v and a plugin that hangs", time.Since(began).Round(time.Millisecond), grace)
	if err := <-hung; err == nil {
		t.Error("the hung pod came up")
	}
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.removeAll(client)
	n.clean()
}
