package integration_test

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// seenFrom connects from a pod to the outside and says whom the outside sees.
func (n *testNode) seenFrom(pod *node.Place, outside net.Listener) (string, error) {
	conn, err := pod.Dial(n.ctx, "tcp4", outside.Addr().String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	peer, err := outside.Accept()
	if err != nil {
		return "", err
	}
	defer peer.Close()
	return peer.RemoteAddr().(*net.TCPAddr).IP.String(), nil
}

// The pods of the seed's network reach the outside with the node's address, by one
// element of the table each, whoever flushes it, while crinetd is away, and where
// somebody else maps hostPorts. A pod that is gone leaves nothing.
func TestMasqueradeByElements(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	outside, err := n.Outside.Listen("tcp4", node.OutsideIPv4+":0")
	n.ok(err)
	t.Cleanup(func() { _ = outside.Close() })
	pod := n.runPod(client, "inside")
	place := n.podPlace(pod)
	masqueraded := func(circumstance string) {
		t.Helper()
		n.awaitOK(answerTimeout, func() error {
			from, err := n.seenFrom(place, outside)
			if err == nil && from != node.NodeIPv4 {
				err = fmt.Errorf("%s: the outside sees %s, want %s", circumstance, from, node.NodeIPv4)
			}
			return err
		})
		if table := n.table(); !strings.Contains(table, `"default/inside" : goto outside_`) {
			t.Errorf("%s: the table has no element of the pod:\n%s", circumstance, table)
		}
	}
	masqueraded("a new pod")
	n.sh("nft flush ruleset")
	n.eventually("the table is back", func() bool { return strings.Contains(n.table(), "default/inside") })
	masqueraded("after a flush")
	n.ok(n.KillCrinetd())
	masqueraded("while crinetd is away")
	n.sh("nft flush ruleset")
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), "--hostport=off")...))
	n.awaitNetwork(client, true)
	masqueraded("with --hostport=off")
	n.ok(pod.StopAndRemove(n.ctx))
	n.noTable("--hostport=off, without pods")
	n.noLeftovers()
}
