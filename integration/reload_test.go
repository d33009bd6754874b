package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
	"github.com/crinet-project/crinet/runtime/admin"
)

// link is a network device as iproute2 shows it.
type link struct {
	Name string `json:"ifname"`
	MTU  int    `json:"mtu"`
}

// podLink returns the pod's eth0.
func (n *testNode) podLink(pod *node.Pod) link {
	n.t.Helper()
	pods, err := n.admin().Pods(n.ctx)
	n.ok(err)
	at := slices.IndexFunc(pods, func(p admin.Pod) bool { return p.SandboxID == pod.ID })
	if at < 0 {
		n.t.Fatalf("crinetd does not know pod %s: %+v", pod.ID, pods)
	}
	var links []link
	n.ok(json.Unmarshal([]byte(n.sh("nsenter --net=%s ip -json link show eth0", pods[at].NetNS)), &links))
	return links[0]
}

// stormNetwork is a network whose pods show which version they were made with.
func stormNetwork(mtu int) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "storm", "plugins": [{"type": "bridge", "bridge": "storm0", "mtu": %d,
	"isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.40.0.0/16"}}]}`, mtu)
}

// edit changes the conf dir of the storm once, in one of eight ways. Most of them
// leave a file that cannot be used.
func (n *testNode) edit(i int) error {
	file := n.Path(node.ConfDir + "/10-storm.conflist")
	other := n.Path(fmt.Sprintf("%s/%d0-other.conflist", node.ConfDir, 2+i%7))
	good := stormNetwork(1300 + i%100)
	switch i % 8 {
	case 0, 4:
		return n.replaceConf("10-storm.conflist", good)
	case 1: // a writer that is slow
		if err := os.WriteFile(file, []byte(good[:len(good)/2]), 0o644); err != nil {
			return err
		}
		return os.WriteFile(file, []byte(good), 0o644)
	case 2: // left half written until the next edit of it
		return os.WriteFile(file, []byte(good[:i%len(good)]), 0o644)
	case 3:
		return os.WriteFile(other, []byte(plain(fmt.Sprintf("other%d", i%7))), 0o644)
	case 5:
		return os.WriteFile(other, []byte(`{"name": `), 0o644)
	case 6:
		return os.RemoveAll(other)
	default: // a broken file that would be the first
		return n.replaceConf("05-first.conflist", strings.Repeat("[", i))
	}
}

// replaceConf replaces a file of the conf dir by rename. The temporary name ends in
// .new, so that containerd does not read it: containerd reads names with a leading
// dot, and before crinet's file, and a broken one would stop its networking.
func (n *testNode) replaceConf(name, content string) error {
	path := n.Path(node.ConfDir + "/" + name)
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// A thousand edits while pods come and go: no pod fails, the last edit wins.
func TestStormOfEdits(t *testing.T) {
	t.Parallel()
	const edits, workers = 1000, 3
	n, client := newNodeWith(t, "10-storm.conflist", stormNetwork(1300), cniFlags...)
	n.awaitNetwork(client, true)
	defer n.likeKubelet(client)()
	scans := n.status().Watch.Scans
	over, stop := context.WithCancel(n.ctx)
	defer stop()
	var pods atomic.Int64
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for i := 0; over.Err() == nil; i++ {
				pod, err := client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("storm-%d-%d", worker, i)))
				if err == nil {
					err = pod.StopAndRemove(n.ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
				pods.Add(1)
			}
		})
	}
	stormed := time.Now()
	for i := range edits {
		if err := n.edit(i); err != nil {
			t.Error(err)
			break
		}
		time.Sleep(8 * time.Millisecond) // the storm takes as long as some dozen pods
	}
	n.ok(n.replaceConf("10-storm.conflist", stormNetwork(1234)))
	began := time.Now()
	n.awaitStatus("the last edit", cleanTimeout, func(s admin.Status) bool {
		return s.Network == "storm" && !slices.ContainsFunc(s.Networks, func(n admin.Network) bool { return n.Name == "storm" && n.Stale != "" })
	})
	n.awaitQuiet()
	scans = n.status().Watch.Scans - scans
	// A storm that a busy machine draws out is looked at more often.
	most := max(edits/10, uint64(time.Since(stormed)/(250*time.Millisecond)))
	t.Logf("%d pods during %d edits, which cost %d scans; the last was live after %v", pods.Load(), edits, scans, time.Since(began))
	stop()
	group.Wait()
	last := n.runPod(client, "last")
	if mtu := n.podLink(last).MTU; mtu != 1234 {
		t.Errorf("a pod after the storm has MTU %d, want that of the last edit, 1234", mtu)
	}
	if pods.Load() < workers {
		t.Errorf("only %d pods came and went", pods.Load())
	}
	if scans > most {
		t.Errorf("%d edits cost %d scans, want %d at most", edits, scans, most)
	}
	n.ok(last.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// chain is a network with a bridge of its own, whose test plugin records its calls.
func chain(name, subnet string) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %[1]q, "plugins": [
	{"type": "bridge", "bridge": "%[1]s0", "isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": %[2]q}},
	{"type": "testplugin", "dir": "/run/record-%[1]s"}]}`, name, subnet)
}

// recorded returns the calls of a verb that a network's test plugin has
// recorded.
func (n *testNode) recorded(network, verb string) []script.Call {
	n.t.Helper()
	all, err := script.Calls(n.Path("/run/record-" + network))
	n.ok(err)
	return slices.DeleteFunc(all, func(c script.Call) bool { return c.Verb != verb })
}

// reachable fails the test for a pod that does not answer the node.
func (n *testNode) reachable(pod *node.Pod) {
	n.t.Helper()
	addrs, err := pod.Addresses(n.ctx)
	n.ok(err)
	if len(addrs) == 0 {
		n.t.Errorf("pod %s has no address", pod.Config.GetMetadata().GetName())
	}
	for _, addr := range addrs {
		if _, err := n.Run(n.ctx, "busybox", "ping", "-c", "1", "-W", "5", addr); err != nil {
			n.t.Errorf("pod %s: %v", pod.Config.GetMetadata().GetName(), err)
		}
	}
}

// When another network is selected, twenty running pods keep theirs and are removed
// by its DEL. New pods are on the new network.
func TestNetworkChangesUnderPods(t *testing.T) {
	t.Parallel()
	const pods = 20
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-net.conflist", chain("old", "10.41.0.0/16")))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	defer n.likeKubelet(client)()
	old := make([]*node.Pod, pods)
	n.each(pods, 4, func(i int) (err error) {
		old[i], err = client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("old-%d", i)))
		return err
	})
	n.ok(n.replaceConf("10-net.conflist", chain("new", "10.42.0.0/16")))
	n.awaitLive("the other network", "new", cleanTimeout)
	young := n.runPod(client, "young")
	if addr := n.address(young); !strings.HasPrefix(addr, "10.42.") {
		t.Errorf("a new pod has the address %s, want one of 10.42.0.0/16", addr)
	}
	n.reachable(young)
	for _, pod := range old {
		n.reachable(pod)
	}
	n.each(pods, 4, func(i int) error { return old[i].StopAndRemove(n.ctx) })
	left := map[string]bool{}
	for _, call := range n.recorded("old", "DEL") {
		left[call.ContainerID] = true
	}
	for _, pod := range old {
		if !left[pod.ID] {
			t.Errorf("pod %s was not removed by the DEL of the network that it was on", pod.Config.GetMetadata().GetName())
		}
	}
	if calls := n.recorded("new", "DEL"); len(calls) != 0 {
		t.Errorf("the new network's DEL was called for pods that were not on it: %+v", calls)
	}
	n.reachable(young)
	n.ok(young.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// each calls do for 0 to count-1, some at a time.
func (n *testNode) each(count, atATime int, do func(i int) error) {
	n.t.Helper()
	places := make(chan struct{}, atATime)
	var group sync.WaitGroup
	for i := range count {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			if err := do(i); err != nil {
				n.t.Error(err)
			}
		})
	}
	group.Wait()
	if n.t.Failed() {
		n.t.FailNow()
	}
}

// A file that breaks keeps its network. A file that is removed takes it away at once.
func TestNetworkIsTakenAwayOnlyOnPurpose(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	defer n.likeKubelet(client)()
	for what, text := range map[string]string{
		"empty": "", "half written": seedBridge[:len(seedBridge)/2], "garbage": "\x00\x01", "without a plugin": `{"name":"mynet"}`,
	} {
		n.ok(os.WriteFile(n.Path(node.ConfDir+"/10-mynet.conf"), []byte(text), 0o644))
		n.problem("10-mynet.conf", "last good version is used")
		n.awaitNetwork(client, true)
		n.ok(n.runPod(client, "still-"+strings.ReplaceAll(what, " ", "-")).StopAndRemove(n.ctx))
		condition, err := client.NetworkReady(n.ctx)
		n.ok(err)
		if message := condition.GetMessage(); !strings.Contains(message, "10-mynet.conf") {
			t.Errorf("%s: NetworkReady's message %q does not name the file", what, message)
		}
	}
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.awaitStatus("no problem any more", cleanTimeout, func(s admin.Status) bool { return len(s.Problems) == 0 })
	pod := n.runPod(client, "runs")

	var took []time.Duration
	for range 5 {
		n.ok(os.Remove(n.Path(node.ConfDir + "/10-mynet.conf")))
		began := time.Now()
		if message := n.awaitNetwork(client, false); !strings.Contains(message, "NetworkPluginNotReady: waiting for network mynet in "+node.ConfDir) ||
			!strings.Contains(message, "no usable CNI network in "+node.ConfDir) {
			t.Errorf("NetworkReady is false with %q", message)
		}
		took = append(took, time.Since(began))
		if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "no usable CNI network") {
			t.Errorf("a pod without a network: %v", err)
		}
		n.reachable(pod)
		n.ok(n.WriteConf("10-mynet.conf", seedBridge))
		n.awaitNetwork(client, true)
	}
	n.onTime(took)
	n.ok(os.Remove(n.Path(node.ConfDir + "/10-mynet.conf")))
	n.awaitNetwork(client, false)
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// A file that is broken when crinetd starts keeps the network that it had; a new
// network that delegates to crinet, or a program in the bin dir, changes nothing.
func TestBrokenFileAndRestart(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	pod := n.runPod(client, "runs")
	n.ok(n.WriteFile("/run/program", "#!/bin/sh\necho run >>/run/program.log"))
	n.sh("chmod +x /run/program; cp /run/program %s/kubelet", node.BinDir)
	n.ok(n.WriteConf("00-multus.conf", `{"cniVersion": "1.0.0", "name": "multus", "type": "bridge", "clusterNetwork": "`+node.ConfDir+`/00-crinet.conflist"}`))
	n.problem("00-multus.conf", "leads back to crinet")
	n.ok(os.WriteFile(n.Path(node.ConfDir+"/10-mynet.conf"), []byte(seedBridge[:len(seedBridge)/2]), 0o644))
	n.problem("10-mynet.conf", "last good version is used")
	for range 2 {
		n.ok(n.KillCrinetd())
		n.ok(n.StartCrinetd(n.ctx, cniFlags...))
		n.awaitNetwork(client, true)
		n.problem("10-mynet.conf", "last good version is used")
		n.ok(n.runPod(client, "after").StopAndRemove(n.ctx))
		n.reachable(pod)
	}
	n.awaitPlugin("kubelet", func(p admin.Plugin) bool { return p.Reason == "not asked: no configuration names it" })
	if _, err := os.Stat(n.Path("/run/program.log")); err == nil {
		t.Error("a program that no configuration names was run")
	}
	n.ok(n.KillCrinetd())
	n.ok(os.Remove(n.Path(node.ConfDir + "/10-mynet.conf")))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, false)
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}
