package integration_test

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// bareNode starts a node whose containerd networks its pods itself.
func bareNode(t *testing.T, file, conf string) (*testNode, *node.Client) {
	t.Helper()
	n := newSharedNode(t)
	n.ok(n.WriteConf(file, conf))
	n.ok(n.StartContainerd(n.ctx))
	direct := n.client(node.ContainerdSocket)
	n.awaitNetwork(direct, true)
	return n, direct
}

// Review row A6: a pod whose hostPort portmap mapped before crinetd came leaves
// no rule behind that would take the port from the next pod.
func TestPortmapRuleOfAPodFromBefore(t *testing.T) {
	t.Parallel()
	n, direct := bareNode(t, "10-portmapped.conflist", portmapBridge)
	n.servePod(direct, "before", bothPorts("", 8080)...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "before")
	if n.portmapRules("8080") == "" {
		t.Fatal("portmap has made no rule that this test would find")
	}
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.answers(n.Outside, node.NodeIPv4, 8080, "before")
	known := n.containerdResults()
	n.removeAll(client)
	if rules := n.portmapRules("8080"); rules != "" {
		t.Errorf("portmap's rules are left behind:\n%s", rules)
	}
	after := n.servePod(client, "after", bothPorts("", 8080)...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "after")
	n.ok(after.StopAndRemove(n.ctx))
	n.cleanBut(known...)
}

// Review row A7: the removal of a pod from before crinetd fails while crinet has
// no network whose DEL could free its address and the runtime kept no record of
// it, and works when there is a network.
func TestPodFromBeforeWithoutNetwork(t *testing.T) {
	t.Parallel()
	n, direct := bareNode(t, "10-mynet.conf", seedBridge)
	pod := n.runPod(direct, "before")
	n.sh("mv %[1]s/10-mynet.conf /run/", node.ConfDir)
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--runtime-cni-cache-dir=/run/none"}, cniFlags...)...))
	client := n.client(node.CrinetdSocket)
	n.notReady(client, "no usable CNI network")
	_, err := client.Runtime.StopPodSandbox(n.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
	if err == nil || !strings.Contains(err.Error(), "no network whose DEL could free") {
		t.Errorf("StopPodSandbox answers %v, want an error: the pod's address would leak", err)
	}
	n.sh("mv /run/10-mynet.conf %s/", node.ConfDir)
	n.awaitNetwork(client, true)
	known := n.containerdResults()
	n.removeAll(client)
	n.cleanBut(known...)
}

// containerdResults are what containerd's own cache holds, as Leftovers names it:
// it forgets a result by the name of the network that it has loaded now.
func (n *testNode) containerdResults() []string {
	n.t.Helper()
	left, err := n.Leftovers(n.ctx)
	n.ok(err)
	return slices.DeleteFunc(left, func(what string) bool { return !strings.HasPrefix(what, "containerd result ") })
}

// cacheEntry is what libcni keeps of an attachment.
func cacheEntry(network, conf, id, netns string) string {
	text, _ := json.Marshal(map[string]any{ // strings and maps
		"kind": "cniCacheV1", "containerId": id, "config": base64.StdEncoding.EncodeToString([]byte(conf)),
		"ifName": "eth0", "networkName": network, "netns": netns,
		"result": map[string]any{"cniVersion": "1.0.0", "ips": []any{map[string]string{"address": "10.59.0.9/16"}}},
	})
	return string(text)
}

// Review row A8: what dockershim and nerdctl left in a cache of results, whose
// namespaces are those of pods that run, is nobody's to remove: not at the start,
// not by the sweeper, not by GC.
func TestCacheEntriesOfOthers(t *testing.T) {
	t.Parallel()
	for name, cacheDir := range map[string]string{"crinet's cache": "/var/lib/crinet/cni", "everybody's cache": "/var/lib/cni"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := strings.ReplaceAll(chain("shared", "10.59.0.0/16"), `"1.0.0"`, `"1.1.0"`)
			n := newNode(t)
			n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
			n.ok(n.WriteConf("10-shared.conflist", conf))
			n.ok(n.StartContainerd(n.ctx))
			flags := append([]string{"--cni-cache-dir=" + cacheDir, "--cni-gc-interval=300ms"}, cniFlags...)
			n.ok(n.StartCrinetd(n.ctx, flags...))
			client := n.client(node.CrinetdSocket)
			n.awaitNetwork(client, true)
			pod := n.runPod(client, "living")
			var pid string
			n.eventually("the pod's process has its name", func() bool {
				pid, _, _ = strings.Cut(n.sh("pidof nodetest pause /pause || true"), " ")
				pid = strings.TrimSpace(pid)
				return pid != ""
			})
			netns := "/proc/" + pid + "/ns/net"
			n.sh("ls %s", netns)
			foreign := map[string]string{ // file -> attachment
				"/var/lib/cni/cache/results/shared-dockershim-eth0": cacheEntry("shared", conf, "dockershim", netns),
				cacheDir + "/results/shared-dockershim-eth0":        cacheEntry("shared", conf, "dockershim", netns),
				cacheDir + "/results/shared-nerdctl-eth0":           cacheEntry("shared", conf, "nerdctl", netns),
			}
			for file, text := range foreign {
				n.ok(n.WriteFile(file, text))
			}
			n.restart(client, flags...)
			collected := len(n.recorded("shared", "GC"))
			n.eventually("GC three times", func() bool { return len(n.recorded("shared", "GC")) >= collected+3 })
			if dels := n.recorded("shared", "DEL"); len(dels) != 0 {
				t.Errorf("attachments of others were removed: %+v", dels)
			}
			n.reachable(pod)
			for file := range foreign {
				n.sh("test -e %s", file)
				n.sh("rm %s", file)
			}
			n.ok(pod.StopAndRemove(n.ctx))
			n.clean()
		})
	}
}

// Review row A9: a sandbox that takes long to start after ADD keeps its network,
// although containerd does not list it yet: GC is told that it is valid however
// often it comes meanwhile, and a GC of the runtime's, which asks the sweeper's
// question at once (it asks by itself once a minute), removes nothing.
func TestSlowSandboxKeepsItsNetwork(t *testing.T) {
	t.Parallel()
	const slowRunc = "/run/slow-runc"
	n := newNodeOf(t, node.Options{ContainerdConfig: handler("slow", slowRunc, "")})
	n.ok(n.WriteFile(slowRunc, "#!/bin/sh\ncase \" $* \" in *' create '*) sleep 4;; esac\nexec "+kit.Tool("runc")+" \"$@\"\n"))
	n.sh("chmod +x %s", slowRunc)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-slow.conflist", strings.ReplaceAll(chain("slow", "10.59.0.0/16"), `"1.0.0"`, `"1.1.0"`)))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--cni-gc-interval=300ms"}, cniFlags...)...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	type outcome struct {
		pod *node.Pod
		err error
	}
	started := make(chan outcome, 1)
	go func() {
		pod, err := client.RunPodBy(n.ctx, "slow", n.PodConfig("slow"))
		started <- outcome{pod, err}
	}()
	n.eventually("the pod is attached", func() bool {
		states, err := n.PodStates(n.ctx)
		n.ok(err)
		return len(states) == 1 && len(states[0].Addresses) == 1
	})
	collected := len(n.recorded("slow", "GC"))
	n.sh(`echo '{"cniVersion": "1.1.0", "name": "crinet", "type": "crinet", "socket": "/run/crinet/cni.sock", "cni.dev/valid-attachments": []}' |
		CNI_COMMAND=GC CNI_PATH=%[1]s %[1]s/crinet`, node.BinDir)
	n.eventually("GC three times", func() bool { return len(n.recorded("slow", "GC")) >= collected+3 })
	if len(started) != 0 {
		t.Fatal("the sandbox was not slow enough for this test")
	}
	slow := <-started
	n.ok(slow.err)
	n.reachable(slow.pod)
	for _, call := range n.recorded("slow", "GC")[collected+1:] {
		if !strings.Contains(string(call.Config), slow.pod.ID) {
			t.Errorf("GC was told that the pod's attachment is not valid: %s", call.Config)
		}
	}
	if dels := n.recorded("slow", "DEL"); len(dels) != 0 {
		t.Errorf("the network was removed while the sandbox started: %+v", dels)
	}
	n.ok(slow.pod.StopAndRemove(n.ctx))
	n.clean()
}
