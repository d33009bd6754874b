package integration_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// statusNetwork has the verb STATUS.
var statusNetwork = strings.ReplaceAll(chain("stat", "10.56.0.0/16"), `"1.0.0"`, `"1.1.0"`)

func (n *testNode) statusDoes(rules ...script.Rule) {
	n.t.Helper()
	n.ok(script.SetRules(n.Path("/run/record-stat"), rules...))
}

// The network's STATUS decides whether the node is ready: at once at the start, and
// after the grace later. crinetd runs STATUS by itself, beside everything else,
// however often anybody asks and whatever STATUS does.
func TestStatusOfTheNetwork(t *testing.T) {
	t.Parallel()
	const grace = 3 * time.Second
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-stat.conflist", statusNetwork))
	n.statusDoes(script.Rule{Verb: "STATUS", Do: script.Fail, Code: 50, Text: "the agent is away"})
	n.ok(n.StartContainerd(n.ctx))
	flags := append([]string{"--cni-status-grace=" + grace.String()}, cniFlags...)
	n.ok(n.StartCrinetd(n.ctx, flags...))
	client := n.client(node.CrinetdSocket)
	message := n.awaitNetwork(client, false)
	for _, want := range []string{"NetworkPluginNotReady", "stat", "testplugin", "CNI code 50", "the agent is away"} {
		if !strings.Contains(message, want) {
			t.Errorf("NetworkReady says %q, want it to say %q", message, want)
		}
	}
	if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "the agent is away") {
		t.Errorf("a pod while STATUS fails at the start: %v", err)
	}
	n.statusDoes()
	n.awaitNetwork(client, true)

	pod := n.runPod(client, "before")
	n.statusDoes(script.Rule{Verb: "STATUS", Do: script.Fail, Code: 51, Text: "half the agent is away"})
	n.awaitReport("a failing STATUS", "half the agent is away")
	failing := time.Now()
	n.ok(n.runPod(client, "within-the-grace").StopAndRemove(n.ctx))
	message = n.awaitNetwork(client, false)
	if took := time.Since(failing); took < grace-time.Second {
		t.Errorf("the node was not ready %v after STATUS began to fail, want a grace of %v", took, grace)
	}
	if !strings.Contains(message, "CNI code 51") || !strings.Contains(message, "limited connectivity") || !strings.Contains(message, "half the agent is away") {
		t.Errorf("NetworkReady says %q", message)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.statusDoes()
	n.awaitNetwork(client, true)

	// One that hangs holds nothing up.
	n.statusDoes(script.Rule{Verb: "STATUS", Do: script.Hang})
	before := len(n.recorded("stat", "STATUS"))
	n.awaitCalls("STATUS", before+1)
	began := time.Now()
	for range 50 {
		if _, err := client.NetworkReady(n.ctx); err != nil {
			t.Error(err)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("50 calls of Status took %v while the plugin hung", took)
	}
	n.ok(n.runPod(client, "while-it-hangs").StopAndRemove(n.ctx))
	if calls := len(n.recorded("stat", "STATUS")); calls > before+1 {
		t.Errorf("STATUS was run %d times while one hung", calls-before)
	}
	// Another network is asked at once all the same.
	n.ok(n.replaceConf("05-other.conflist", strings.ReplaceAll(statusNetwork, "stat", "other")))
	n.awaitLive("another network", "other", cleanTimeout)
	for deadline := time.Now().Add(3 * time.Second); len(n.recorded("other", "STATUS")) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the newly selected network was not asked at once")
		}
	}
	n.noLeftovers()
}

// awaitReport waits until crinetctl status tells of a STATUS.
func (n *testNode) awaitReport(what, text string) {
	n.t.Helper()
	for deadline := time.Now().Add(cleanTimeout); !strings.Contains(n.status().NetworkStatus, text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s is not told: %q", what, n.status().NetworkStatus)
		}
	}
}

// awaitCalls waits until the plugin of statusNetwork was called so often.
func (n *testNode) awaitCalls(verb string, count int) {
	n.t.Helper()
	for deadline := time.Now().Add(cleanTimeout); len(n.recorded("stat", verb)) < count; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s was not called %d times", verb, count)
		}
	}
}

// STATUS is not called for pods, and not more often when callers ask more often.
func TestStatusIsBesideThePods(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-stat.conflist", statusNetwork))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.awaitCalls("STATUS", 1)
	before := len(n.recorded("stat", "STATUS"))
	began := time.Now()
	for range 100 {
		if _, err := client.NetworkReady(n.ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b", "c"} {
		n.ok(n.runPod(client, name).StopAndRemove(n.ctx))
	}
	calls := n.recorded("stat", "STATUS")
	// containerd runs STATUS for each CRI Status, and gets crinetd's answer.
	if most := before + 2 + int(time.Since(began)/(2*time.Second)); len(calls) > most {
		t.Errorf("STATUS was run %d times, want at most %d: it depends on the callers", len(calls), most)
	}
	if slices.ContainsFunc(calls, func(c script.Call) bool { return c.ContainerID != "" || c.NetNS != "" }) {
		t.Errorf("STATUS was called for a container: %+v", calls)
	}
	n.noLeftovers()
}
