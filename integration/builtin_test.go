package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// saysHow waits until crinetctl status says how a plugin is run.
func (n *testNode) saysHow(plugin, how string) {
	n.t.Helper()
	n.awaitOK(cleanTimeout, func() error {
		out, err := n.Crinetctl(n.ctx, "status")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "Plugin:") && strings.Contains(line, plugin+", "+how) {
				return nil
			}
		}
		return fmt.Errorf("crinetctl status does not say that %s is %s:\n%s", plugin, how, out)
	})
}

// runsOf is the metric of a plugin's runs.
func runsOf(plugin, verb, how string) string {
	return `crinet_plugin_run_duration_seconds_count{how="` + how + `",outcome="ok",plugin="` + plugin + `",verb="` + verb + `"}`
}

// What runs inside crinetd is told, and why the rest does not.
func TestBuiltinIsTold(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	n.saysHow("bridge", "built in")
	n.saysHow("testplugin", "executed: crinetd has no such plugin")
	pod := n.runPod(client, "told")
	n.ok(pod.StopAndRemove(n.ctx))
	for _, verb := range []string{"ADD", "DEL"} {
		n.metricAtLeast(runsOf("bridge", verb, "builtin"), 1)
		n.metricAtLeast(runsOf("testplugin", verb, "exec"), 1)
	}
	n.ok(n.WriteConf("10-recorded.conflist", strings.Replace(recordedBridge, `"isDefaultGateway": true`, `"isDefaultGateway": true, "vlan": 7`, 1)))
	n.saysHow("bridge", "executed: key vlan is not built in")
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), "--builtin-plugins=host-local")...))
	n.ok(n.WriteConf("10-recorded.conflist", recordedBridge))
	n.saysHow("bridge", "executed: --builtin-plugins leaves bridge out")
	n.clean()
}

// A pod that was networked inside crinetd is removed by that, when the binaries are
// gone and new pods would be networked by them.
func TestBuiltinDelWithoutBinaries(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-mynet.conf", seedBridge, cniFlags...)
	n.awaitNetwork(client, true)
	pod, second := n.runPod(client, "first"), n.runPod(client, "second")
	n.sh("rm %s/bridge %s/host-local", node.BinDir, node.BinDir)
	n.ok(pod.StopAndRemove(n.ctx))
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), "--builtin-plugins=off")...))
	n.ok(second.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// flannel's own configuration runs inside crinetd, from the file that flanneld writes;
// its pods are removed as they were made when that file has changed.
func TestBuiltinFlannel(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	env := func(subnet string) {
		n.ok(n.WriteFile("/run/flannel/subnet.env", "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET="+subnet+"\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"))
	}
	env("10.244.3.1/24")
	network := strings.Replace(shippedNetworks["flannel"].conf, "cbr0", "builtinflannel", 1)
	n.ok(n.WriteConf("10-flannel.conflist", network))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.saysHow("flannel", "built in")
	pod := n.runPod(client, "first")
	n.checkAddresses(pod, "10.244.3.0/24")
	second := n.runPod(client, "second")
	n.checkAddresses(second, "10.244.3.0/24")
	env("10.244.4.1/24")
	n.ok(pod.StopAndRemove(n.ctx))
	n.sh("rm /run/flannel/subnet.env %s/flannel %s/bridge", node.BinDir, node.BinDir)
	n.ok(second.StopAndRemove(n.ctx))
	n.sh(`test -z "$(ls -A /var/lib/cni/flannel)"`)
	n.noLeftovers()
}
