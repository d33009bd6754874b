package integration_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// Review row A10: the addresses of Services in kube-proxy's IPVS mode are local,
// on kube-ipvs0 (a bridge stands in for the dummy device), and no hostPort takes
// their ports, also not of addresses that come later.
func TestIPVSAddressesAreServices(t *testing.T) {
	t.Parallel()
	const service, later, local = "10.96.0.1", "10.96.0.2", "10.97.0.1"
	n, client := newDualNode(t)
	n.sh("ip link add kube-ipvs0 type bridge && ip addr add %s/32 dev kube-ipvs0 && ip addr add %s/32 dev lo", service, local)
	n.servePod(client, "porter", bothPorts("", 8080)...)
	bystander := n.podPlace(n.runPod(client, "bystander"))
	n.hostServer(service + ":8080") // it waits for an answer, whose ever
	isService := func(address string) error {
		for _, from := range []*node.Place{n.Place, bystander} {
			name, _, err := n.ask(from, tcp, address, 8080, answerTimeout)
			if err == nil && name == "porter" {
				return fmt.Errorf("%s:8080 is answered by %s, not by the Service", address, name)
			}
			if err != nil && address == service {
				return err
			}
		}
		return nil
	}
	n.awaitOK(answerTimeout, func() error { return isService(service) })
	n.answers(n.Place, node.NodeIPv4, 8080, "porter")
	n.answers(n.Place, local, 8080, "porter")
	n.sh("ip addr add %s/32 dev kube-ipvs0", later)
	n.awaitOK(answerTimeout, func() error { return isService(later) })
}

// Review row A11: a hostPort of ::1 is accepted, does not conflict with other
// addresses, and answers the node's own addresses.
func TestHostPortOfLoopbackIPv6(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	n.servePod(client, "looped", bothPorts("::1", 8080)...)
	n.servePod(client, "other", bothPorts(node.NodeIPv6, 8080)...)
	n.answers(n.Outside, node.NodeIPv6, 8080, "other")
	var page []byte
	n.awaitOK(answerTimeout, func() error {
		return n.Do(func() error {
			conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(node.NodeIPv6)}, Timeout: time.Second}).
				DialContext(n.ctx, "tcp", "[::1]:8080")
			if err != nil {
				return err
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
				return err
			}
			page, err = io.ReadAll(conn)
			return err
		})
	})
	if !strings.Contains(string(page), "looped ") {
		t.Errorf("[::1]:8080 answers the node's address with %q, want the pod looped", page)
	}
}

// Review row A13: a promiscuous bridge reflects frames by itself, and an explicit
// hairpinMode is the chain's own word: crinetd forces hairpin mode on neither.
func TestHairpinIsTheChainsOwnWord(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-hairpin.conflist", hairpinNetwork("plain", ""), cniFlags...)
	n.awaitNetwork(client, true)
	for _, c := range []struct{ name, setting, want string }{
		{"plain", "", "1"},
		{"promisc", `"promiscMode": true,`, "0"},
		{"refuses", `"hairpinMode": false,`, "0"},
		{"asks", `"hairpinMode": true,`, "1"},
	} {
		n.ok(n.WriteConf("10-hairpin.conflist", hairpinNetwork(c.name, c.setting)))
		n.awaitSelection(c.name)
		pod := n.runPod(client, c.name)
		if mode := strings.TrimSpace(n.sh("cat /sys/class/net/%s0/brif/veth*/hairpin_mode", c.name)); mode != c.want {
			t.Errorf("with %q the pod's port has hairpin mode %s, want %s", c.setting, mode, c.want)
		}
		n.ok(pod.StopAndRemove(n.ctx))
	}
}

// hairpinNetwork is a network whose bridge has one more setting.
func hairpinNetwork(name, setting string) string {
	return strings.Replace(bridged(name, "10.59.0.0/16"), `"isDefaultGateway"`, setting+` "isDefaultGateway"`, 1)
}
