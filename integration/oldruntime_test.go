package integration_test

import (
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// A pod's whole life on each containerd (1.6 is Debian 12's): its network, its
// hostPorts, restarts of both daemons, its removal through either socket.
func TestPodsOnOldContainerd(t *testing.T) {
	t.Parallel()
	for _, containerd := range node.Containerds() {
		t.Run(string(containerd), func(t *testing.T) {
			t.Parallel()
			podsOnContainerd(t, containerd)
		})
	}
}

func podsOnContainerd(t *testing.T, containerd node.Containerd) {
	n := newNodeOf(t, node.Options{Containerd: containerd})
	n.ok(n.WriteConf("10-dual.conflist", dualBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.servePod(client, "first", bothPorts("", 8080)...)
	direct := n.servePod(n.client(node.ContainerdSocket), "direct", bothPorts("", 8081)...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "first")
	n.answers(n.Outside, node.NodeIPv6, 8081, "direct")
	n.refused(client, n.withPorts("rival", bothPorts("", 8081)...), "default/direct")

	n.ok(n.KillCrinetd())
	n.ok(n.KillContainerd())
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.answers(n.Outside, node.NodeIPv4, 8080, "first")
	n.ok(direct.StopAndRemove(n.ctx))
	n.removeAll(client)
	n.clean()
}
