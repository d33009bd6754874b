package integration_test

import (
	"os"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/runtime/admin"
)

// bridged is a network with a bridge of its own.
func bridged(name, subnet string) string {
	return `{"cniVersion": "1.0.0", "name": "` + name + `", "plugins": [{"type": "bridge", "bridge": "` + name + `0",
	"isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "` + subnet + `"}}]}`
}

// --network-plugin names the second of two networks. Pods get that one or none,
// whatever happens to the first.
func TestNetworkChosenByName(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteConf("10-first.conflist", bridged("first", "10.43.0.0/16")))
	n.ok(n.WriteConf("20-second.conflist", bridged("second", "10.44.0.0/16")))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, "--network-plugin=second", "--v=4"))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	onSecond := func(name string) *node.Pod {
		t.Helper()
		pod := n.runPod(client, name)
		if addr := n.address(pod); !strings.HasPrefix(addr, "10.44.") {
			t.Errorf("pod %s has the address %s, want one of the second network, 10.44.0.0/16", name, addr)
		}
		return pod
	}
	first := onSecond("first")
	condition, err := client.NetworkReady(n.ctx)
	n.ok(err)
	if message := condition.GetMessage(); !strings.Contains(message, "network second (20-second.conflist)") || !strings.Contains(message, "its name is the value of --network-plugin") {
		t.Errorf("NetworkReady's message %q does not say which network is chosen and why", message)
	}

	n.ok(os.WriteFile(n.Path(node.ConfDir+"/10-first.conflist"), []byte("{"), 0o644))
	n.problem("10-first.conflist", "is broken")
	second := onSecond("second")
	n.ok(os.Remove(n.Path(node.ConfDir + "/10-first.conflist")))
	n.awaitStatus("the first is gone", cleanTimeout, func(s admin.Status) bool { return len(s.Networks) == 1 && len(s.Problems) == 0 })
	n.ok(n.WriteConf("10-first.conflist", bridged("first", "10.43.0.0/16")))
	n.awaitStatus("the first is back", cleanTimeout, func(s admin.Status) bool { return len(s.Networks) == 2 })
	third := onSecond("third")

	n.sh("mv %s/20-second.conflist /run/second", node.ConfDir)
	message := n.awaitNetwork(client, false)
	for _, want := range []string{"second", "first (bridge)"} {
		if !strings.Contains(message, want) {
			t.Errorf("NetworkReady is false with %q, want it to name %s", message, want)
		}
	}
	if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "second") {
		t.Errorf("a pod without the chosen network: %v", err)
	}
	n.reachable(first)
	n.ok(second.StopAndRemove(n.ctx))
	n.sh("mv /run/second %s/20-second.conflist", node.ConfDir)
	n.awaitNetwork(client, true)
	fourth := onSecond("fourth")
	for _, pod := range []*node.Pod{first, third, fourth} {
		n.reachable(pod)
		n.ok(pod.StopAndRemove(n.ctx))
	}
	log, err := n.Log("crinetd")
	n.ok(err)
	if got := strings.Count(log, `msg="network selected"`); got != 2 {
		t.Errorf("the choice was logged %d times, want twice: at the start and when it was back", got)
	}
	n.noLeftovers()
}
