package integration_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
	"github.com/crinet-project/crinet/runtime/admin"
)

// bootParts are the parts of the network stat, which come after a boot in any order.
func (n *testNode) bootParts() map[string]func() {
	return map[string]func(){
		"file":       func() { n.ok(n.replaceConf("20-stat.conflist", statusNetwork)) },
		"plugin":     func() { n.sh("mv /root/parts/testplugin %s/", node.BinDir) },
		"host-local": func() { n.sh("mv /root/parts/host-local %s/", node.BinDir) },
		"agent":      func() { n.statusDoes() },
	}
}

// A node boots several times with another network beside its own, which is whole at
// once, while the parts of its own come late and in any order. Its pods wait and get
// their network, soon after the last part; until then the node is not ready and says
// what for. See cni.TestHundredBoots for more boots.
func TestBootsInAnyOrder(t *testing.T) {
	t.Parallel()
	const boots, pods = 5, 2
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("20-stat.conflist", statusNetwork))
	n.ok(n.WriteConf("87-decoy.conflist", bridged("decoy", "10.99.0.0/16")))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.runPod(client, "first")
	// The decoy delegates to bridge and host-local as well.
	n.sh("mkdir -p /root/parts && cp %[1]s/host-local %[1]s/decoy-ipam && sed -i 's/\"host-local\"/\"decoy-ipam\"/' %[2]s/87-decoy.conflist", node.BinDir, node.ConfDir)
	for boot := range boots {
		n.ok(n.PowerCycle(n.ctx))
		n.sh("rm %[2]s/20-stat.conflist; mv %[1]s/testplugin %[1]s/host-local /root/parts/", node.BinDir, node.ConfDir)
		n.statusDoes(script.Rule{Verb: "STATUS", Do: script.Fail, Code: 50, Text: "the agent is away"})
		began := time.Now()
		n.ok(n.StartContainerd(n.ctx))
		within := max(3*time.Second, 6*time.Since(began)) // half a second on a machine with nothing else to do
		n.ok(n.StartCrinetd(n.ctx, cniFlags...))
		message := n.awaitNetwork(client, false)
		for _, want := range []string{"waiting for network stat in " + node.ConfDir + " since ", "--network-wait"} {
			if !strings.Contains(message, want) {
				t.Errorf("NetworkReady says %q, want %q in it", message, want)
			}
		}
		n.metricAtLeast("crinet_network_waiting_seconds", 0.001)
		var group sync.WaitGroup
		for i := range pods {
			config := n.PodConfig(fmt.Sprintf("pod-%d-%d", boot, i))
			group.Go(func() {
				for n.ctx.Err() == nil {
					if _, err := client.RunPod(n.ctx, config); err == nil {
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
				t.Errorf("pod %s was lost", config.Metadata.Name)
			})
		}
		parts := n.bootParts()
		order := []string{"agent", "file", "host-local", "plugin"}
		random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, part := range order {
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
			parts[part]()
		}
		came := time.Now()
		n.awaitNetwork(client, true)
		if took := time.Since(came); took > within {
			t.Errorf("boot %d, %v: the node was ready %v after the last part, want %v", boot, order, took, within)
		}
		group.Wait()
		all, err := n.admin().Pods(n.ctx)
		n.ok(err)
		up := slices.DeleteFunc(all, func(p admin.Pod) bool { return p.State != "attached" })
		if len(up) != pods || slices.ContainsFunc(up, func(p admin.Pod) bool { return p.Network != "stat" || p.OtherNetwork }) {
			t.Errorf("boot %d, %v: the pods are %+v", boot, order, up)
		}
	}
	n.removeAll(client)
	n.clean()
}

// A network of before the reboot that does not come holds the others up for
// --network-wait. Pods on another network than new pods get are flagged then.
func TestNetworkWaitEnds(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteConf("20-stat.conflist", bridged("stat", "10.56.0.0/16")))
	n.ok(n.WriteConf("87-decoy.conflist", bridged("decoy", "10.99.0.0/16")))
	n.ok(n.StartContainerd(n.ctx))
	flags := append(slices.Clone(cniFlags), "--network-wait=3s")
	n.ok(n.StartCrinetd(n.ctx, flags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.ok(n.PowerCycle(n.ctx))
	n.sh("mv %s/20-stat.conflist /root/", node.ConfDir)
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, flags...))
	n.awaitNetwork(client, false)
	if _, err := client.RunPod(n.ctx, n.PodConfig("early")); err == nil || !strings.Contains(err.Error(), "waiting for network stat") {
		t.Errorf("a pod while its network is waited for: %v", err)
	}
	if message := n.awaitNetwork(client, true); !strings.Contains(message, "network stat, which pods had before the reboot, has not come within 3s") {
		t.Errorf("NetworkReady says %q", message)
	}
	n.runPod(client, "elsewhere")
	n.sh("mv /root/20-stat.conflist %s/", node.ConfDir)
	n.awaitLive("the network of before", "stat", cleanTimeout)
	n.runPod(client, "right")
	for command, wants := range map[string][]string{
		"status": {`1 pods are not on network stat, which new pods get: "` + n.PodConfig("elsewhere").Metadata.Namespace + `/elsewhere (decoy)"`, "kubectl delete pod"},
		"pods":   {"decoy (not selected)", "Pods on a network that is not selected: 1."},
	} {
		out, err := n.Crinetctl(n.ctx, command)
		n.ok(err)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("crinetctl %s does not say %q:\n%s", command, want, out)
			}
		}
	}
	if count, err := n.Metric(n.ctx, "crinet_pods_on_another_network"); err != nil || count != 1 {
		t.Errorf("crinet_pods_on_another_network is %v, %v; want 1", count, err)
	}
	n.removeAll(client)
	n.clean()
}

// The pod after the last address is refused at once and nothing runs for it; an address
// that is free again is given out at once.
func TestPodAfterTheLastAddress(t *testing.T) {
	t.Parallel()
	const addresses, within, tries = 5, 50 * time.Millisecond, 10
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf(recordedFile, strings.ReplaceAll(recordedBridge, "10.20.0.0/16", "10.20.0.0/29")))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.eventually("the addresses are counted", func() bool { return len(n.status().Addresses) == 1 })
	pods := make([]*node.Pod, addresses)
	for i := range pods {
		pods[i] = n.runPod(client, fmt.Sprintf("pod-%d", i))
	}
	adds, fastest := len(n.calls("ADD")), time.Hour
	for range tries {
		began := time.Now()
		_, err := client.RunPod(n.ctx, n.PodConfig("too-many"))
		fastest = min(fastest, time.Since(began))
		if err == nil || !strings.Contains(err.Error(), `network "recorded" has given out all 5 of 10.20.0.0/29`) {
			t.Fatalf("the pod after the last address: %v", err)
		}
	}
	t.Logf("refused within %v", fastest)
	if ran := len(n.calls("ADD")); fastest > within || ran != adds {
		t.Errorf("refused within %v, want %v, after %d ADDs", fastest, within, ran-adds)
	}
	n.why("too-many", 1, "no IP addresses available", "What to do", "All addresses of network recorded are taken", recordedFile)
	for i := range pods {
		n.ok(pods[i].Stop(n.ctx))
		pods[i] = n.runPod(client, fmt.Sprintf("heir-%d", i))
	}
	n.removeAll(client)
	n.clean()
}
