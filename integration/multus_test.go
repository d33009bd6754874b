package integration_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

const (
	multusFile    = "00-multus.conflist"
	multusNetwork = `{"cniVersion": "1.1.0", "name": "multus-cni-network", "plugins": [{"type": "multus"}]}`
	// multusDir is where the stand-in for Multus keeps script and record.
	multusDir = "/run/multus"
	// multusConfDir is a conf dir that Multus has for itself.
	multusConfDir = "/etc/cni/multus/net.d"
)

// multusMaster is a master plugin's network, with STATUS.
var multusMaster = strings.ReplaceAll(chain("master", "10.57.0.0/16"), `"1.0.0"`, `"1.1.0"`)

// eachMultus runs a test for both kinds of Multus, on a node whose selected
// network is that of a stand-in for it. confDir is where it looks for its master.
func eachMultus(t *testing.T, confDir string, test func(*testNode, *node.Client)) {
	t.Helper()
	for name, thick := range map[string]bool{"thin": false, "thick": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newSharedNode(t)
			standIn, err := json.Marshal(script.StandIn{Dir: multusDir, Multus: &script.Multus{ConfDir: confDir, Thick: thick}})
			n.ok(err)
			n.ok(n.WriteFile(script.StandInDir+"/multus.json", string(standIn)))
			for _, plugin := range []string{"multus", "testplugin"} {
				n.ok(n.InstallPlugin(plugin, kit.Program("testplugin")))
			}
			n.ok(n.WriteFile(multusConfDir+"/10-master.conflist", multusMaster))
			n.ok(n.WriteConf(multusFile, multusNetwork))
			n.ok(n.StartContainerd(n.ctx))
			n.ok(n.StartCrinetd(n.ctx, append([]string{"--cni-status-grace=1s"}, cniFlags...)...))
			client := n.client(node.CrinetdSocket)
			n.awaitNetwork(client, true)
			test(n, client)
		})
	}
}

// Review rows A3 and A3c: Multus in a shared conf dir takes crinet's own file for
// its master's. Each pod fails at once, with the reason, and not one waits for
// itself. Its STATUS asks crinet back, and is not told its own last failure.
func TestMultusTakesCrinetForItsMaster(t *testing.T) {
	t.Parallel()
	eachMultus(t, node.ConfDir, func(n *testNode, client *node.Client) {
		began := time.Now()
		_, err := client.RunPod(n.ctx, n.PodConfig("nested"))
		took := time.Since(began)
		for _, want := range []string{"default/nested", "delegate", "--network-plugin", crinetConf} {
			if err == nil || !strings.Contains(err.Error(), want) {
				n.t.Errorf("the pod ends with %v, want it to say %q", err, want)
			}
		}
		if took > 15*time.Second {
			n.t.Errorf("the pod failed after %v, want at once", took)
		}
		n.t.Logf("after %v: %v", took.Round(time.Millisecond), err)

		n.ok(script.SetRules(n.Path(multusDir), script.Rule{Verb: "STATUS", Do: script.Fail, Code: 50, Text: "the API server is away"}))
		n.notReady(client, "the API server is away")
		n.ok(script.SetRules(n.Path(multusDir)))
		n.awaitNetwork(client, true)

		// The way out that the message names.
		n.ok(n.WriteConf("20-mynet.conf", seedBridge))
		n.ok(n.StopCrinetd())
		n.ok(n.StartCrinetd(n.ctx, "--network-plugin=mynet", "--v=4"))
		n.worksAgain(client, "named")
		n.clean()
	})
}

// Review row A3: where Multus' configuration says that it leads back to crinet,
// it is refused before any pod fails, and crinetctl status says why.
func TestMultusThatNamesCrinetIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.InstallPlugin("multus", kit.Program("testplugin")))
	n.ok(n.WriteConf(multusFile, strings.Replace(multusNetwork, `"multus"`, `"multus", "clusterNetwork": "`+node.ConfDir+"/"+crinetConf+`"`, 1)))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.notReady(client, multusFile, "leads back to crinet")
	n.problem(multusFile, "leads back to crinet")
	n.ok(n.WriteConf("20-mynet.conf", seedBridge))
	n.worksAgain(client, "beside")
}

// Review rows A3 and A3b: a Multus with a master of its own works, although it
// gives every K8S_ argument twice, and its master's STATUS is the node's.
func TestMultusWithItsOwnMaster(t *testing.T) {
	t.Parallel()
	eachMultus(t, multusConfDir, func(n *testNode, client *node.Client) {
		pod := n.runPod(client, "mastered")
		if addr := n.address(pod); !strings.HasPrefix(addr, "10.57.") {
			n.t.Errorf("the pod has the address %s, want one of the master's network", addr)
		}
		n.reachable(pod)
		adds := n.recorded("master", "ADD")
		if len(adds) != 1 || strings.Count(adds[0].Args, "K8S_POD_NAME=mastered") != 2 {
			n.t.Errorf("the master was called with %+v, want the pod's name twice", adds)
		}
		n.ok(script.SetRules(n.Path("/run/record-master"), script.Rule{Verb: "STATUS", Do: script.Fail, Code: 50, Text: "the master is away"}))
		n.notReady(client, "the master is away")
		n.ok(script.SetRules(n.Path("/run/record-master")))
		n.awaitNetwork(client, true)
		n.ok(pod.StopAndRemove(n.ctx))
		if dels := n.recorded("master", "DEL"); len(dels) == 0 {
			n.t.Error("the master's DEL was not called")
		}
		n.clean()
	})
}
