package integration_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

const (
	tcp = runtimeapi.Protocol_TCP
	udp = runtimeapi.Protocol_UDP

	// answerTimeout is how long a server that must answer may take. silence is how
	// long no answer must come, if the kernel does not refuse at once.
	answerTimeout = 5 * time.Second
	silence       = 300 * time.Millisecond
)

// dualBridge is a bridge with both families that does not set hairpin mode.
const dualBridge = `{"cniVersion": "1.0.0", "name": "dual", "plugins": [
	{"type": "bridge", "bridge": "dual0", "isDefaultGateway": true, "ipMasq": true,
	 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.50.0.0/16"}], [{"subnet": "fd00:50::/64"}]]}}]}`

// The addresses of both networks.
const (
	dualDevice  = "dual0"
	dualSubnet4 = "10.50.0.0/16"
	dualGate4   = "10.50.0.1"
	dualGate6   = "fd00:50::1"
)

// dualPTP has the same addresses without a bridge: each pod has a veth to the node.
const dualPTP = `{"cniVersion": "1.0.0", "name": "dual", "plugins": [
	{"type": "ptp", "ipMasq": true,
	 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.50.0.0/16"}], [{"subnet": "fd00:50::/64"}]],
	          "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}`

// newDualNode starts a node with that bridge, ready for pods.
func newDualNode(t *testing.T, flags ...string) (*testNode, *node.Client) {
	t.Helper()
	n, client := newNodeWith(t, "10-dual.conflist", dualBridge, append(slices.Clone(cniFlags), flags...)...)
	n.awaitNetwork(client, true)
	return n, client
}

func hostPort(protocol runtimeapi.Protocol, hostIP string, port, containerPort int32) *runtimeapi.PortMapping {
	return &runtimeapi.PortMapping{Protocol: protocol, HostIp: hostIP, HostPort: port, ContainerPort: containerPort}
}

// bothPorts maps a port of both protocols to the servers of servePod.
func bothPorts(hostIP string, port int32) []*runtimeapi.PortMapping {
	return []*runtimeapi.PortMapping{hostPort(tcp, hostIP, port, 80), hostPort(udp, hostIP, port, 53)}
}

func (n *testNode) withPorts(name string, ports ...*runtimeapi.PortMapping) *runtimeapi.PodSandboxConfig {
	config := n.PodConfig(name)
	config.PortMappings = ports
	return config
}

// servePod runs a pod that serves HTTP on port 80 and UDP on port 53.
func (n *testNode) servePod(client *node.Client, name string, ports ...*runtimeapi.PortMapping) *node.Pod {
	n.t.Helper()
	pod, err := client.RunPod(n.ctx, n.withPorts(name, ports...))
	n.ok(err)
	n.serveIn(pod, ":80", ":53")
	return pod
}

// serveIn runs servers in the pod, and waits until they are there.
func (n *testNode) serveIn(pod *node.Pod, httpAddr, udpAddr string) {
	n.t.Helper()
	server, err := pod.RunContainer(n.ctx, "server", node.TestImage, "/nodetest", "serve", "-http", httpAddr, "-udp", udpAddr)
	n.ok(err)
	n.awaitOK(answerTimeout, func() error {
		if log, err := server.Log(); err != nil || !strings.Contains(log, "ready") {
			return fmt.Errorf("the server in pod %s is not ready: %w, log %q", pod.Config.GetMetadata().GetName(), err, log)
		}
		return nil
	})
}

// awaitOK tries until there is no error.
func (n *testNode) awaitOK(timeout time.Duration, try func() error) {
	n.t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("not within %v: %v", timeout, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *testNode) podPlace(pod *node.Pod) *node.Place {
	n.t.Helper()
	place, err := pod.Place(n.ctx)
	n.ok(err)
	return place
}

// addresses returns the pod's addresses, those of a dual-stack network.
func (n *testNode) addresses(pod *node.Pod) (address4, address6 string) {
	n.t.Helper()
	addrs, err := pod.Addresses(n.ctx)
	n.ok(err)
	if len(addrs) != 2 {
		n.t.Fatalf("the pod has the addresses %q, want one of each family", addrs)
	}
	return addrs[0], addrs[1]
}

// ask talks to a server of nodetest from a place: it returns the server's name,
// and the client's address as the server sees it.
func (n *testNode) ask(from *node.Place, protocol runtimeapi.Protocol, address string, port int32, timeout time.Duration) (name, client string, err error) {
	ctx, cancel := context.WithTimeout(n.ctx, timeout)
	defer cancel()
	target := net.JoinHostPort(address, fmt.Sprint(port))
	var answer string
	if protocol == tcp {
		answer, err = from.Get(ctx, "http://"+target+"/")
	} else {
		answer, err = from.AskUDP(ctx, target)
	}
	if err != nil {
		return "", "", err
	}
	name, peer, _ := strings.Cut(strings.TrimSpace(answer), " ")
	peer, _, _ = strings.Cut(peer, " ")
	client, _, err = net.SplitHostPort(peer)
	return name, client, err
}

// answers checks that a pod answers, for both protocols.
func (n *testNode) answers(from *node.Place, address string, port int32, want string) {
	n.t.Helper()
	for _, protocol := range []runtimeapi.Protocol{tcp, udp} {
		name, _, err := n.ask(from, protocol, address, port, answerTimeout)
		if err != nil || name != want {
			n.t.Errorf("%v %s:%d is answered by %q, want %q: %v", protocol, address, port, name, want, err)
		}
	}
}

// silent checks that nobody answers.
func (n *testNode) silent(from *node.Place, address string, port int32) {
	n.t.Helper()
	for _, protocol := range []runtimeapi.Protocol{tcp, udp} {
		if name, _, err := n.ask(from, protocol, address, port, silence); err == nil {
			n.t.Errorf("%v %s:%d is answered by %q, want nobody", protocol, address, port, name)
		}
	}
}

// table lists crinetd's nftables table; it is "" where there is none.
func (n *testNode) table() string {
	n.t.Helper()
	tables, err := n.Run(n.ctx, "nft", "list", "tables")
	n.ok(err)
	if !strings.Contains(tables, "table inet crinet\n") {
		return ""
	}
	table, err := n.Run(n.ctx, "nft", "list", "table", "inet", "crinet")
	n.ok(err)
	return table
}

// noMappings checks that the table has nothing for any pod's hostPorts. Pods that are
// still there are masqueraded.
func (n *testNode) noMappings() {
	n.t.Helper()
	table := n.table()
	for line := range strings.Lines(table) {
		if strings.Contains(line, dualDevice) || strings.Contains(line, "default/") && !strings.Contains(line, "goto outside_") {
			n.t.Errorf("the table still knows hostPorts of pods:\n%s", table)
			return
		}
	}
}

// sysctl sets one in a place.
func (n *testNode) sysctl(place *node.Place, name, value string) {
	n.t.Helper()
	_, err := place.Run(n.ctx, "sh", "-c", "echo "+value+" > /proc/sys/net/"+name)
	n.ok(err)
}

// hostIPs are the addresses that a hostPort can be for, each with a port of its
// own.
var hostIPs = []struct {
	hostIP string
	port   int32
}{
	{"", 8080}, {"0.0.0.0", 8081}, {"::", 8082},
	{node.NodeIPv4, 8083}, {node.NodeIPv6, 8084}, {"127.0.0.1", 8085},
}

// serves says whether a hostPort for hostIP answers on an address of the node.
func serves(hostIP, address string) bool {
	is4 := netip.MustParseAddr(address).Is4()
	switch {
	case address == "::1":
		return false // the kernel does not route ::1 elsewhere
	case hostIP == "":
		return true
	case hostIP == "0.0.0.0":
		return is4
	case hostIP == "::":
		return !is4
	}
	return hostIP == address
}

// way is a way to a hostPort: from where, by which address of the node, and with
// which address the pod sees the client.
type way struct {
	name    string
	from    *node.Place
	address string
	client  string
}

// A hostPort is reached from outside, from the node, from another pod and from the
// pod itself, whether bridged packets pass iptables or not. The pod sees the
// client's own address wherever answers find their way back.
func TestHostPortReach(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	web, other := n.reachPods(client)
	for _, bridged := range []string{"1", "0"} {
		n.setSysctls(bridged)
		for _, w := range n.ways(web, other, bridged == "1") {
			for _, h := range hostIPs {
				n.checkWay(w, h.hostIP, h.port, "bridge-nf-call-iptables="+bridged)
			}
		}
	}
	n.checkShown(web)
	n.setSysctls("1")
	n.checkHairpinMode(client)
	for _, pod := range []*node.Pod{web, other} {
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.noMappings()
	n.noLeftovers()
}

// The same holds without a bridge.
func TestHostPortReachWithoutBridge(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-dual.conflist", dualPTP, cniFlags...)
	n.awaitNetwork(client, true)
	web, other := n.reachPods(client)
	for _, w := range n.ways(web, other, true) {
		for _, h := range hostIPs {
			n.checkWay(w, h.hostIP, h.port, "ptp")
		}
	}
	for _, pod := range []*node.Pod{web, other} {
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.noMappings()
	n.noLeftovers()
}

// reachPods runs the pod web, which has all the hostPorts, and the pod other.
func (n *testNode) reachPods(client *node.Client) (web, other *node.Pod) {
	n.t.Helper()
	// There are many refusals, and the kernel would limit their rate.
	n.sysctl(n.Place, "ipv4/icmp_ratelimit", "0")
	n.sysctl(n.Place, "ipv6/icmp/ratelimit", "0")
	ports := []*runtimeapi.PortMapping{hostPort(tcp, "", 0, 80), hostPort(udp, "", 0, 53)}
	for _, h := range hostIPs {
		ports = append(ports, bothPorts(h.hostIP, h.port)...)
	}
	return n.servePod(client, "web", ports...), n.servePod(client, "other")
}

// ways returns all ways to the hostPorts of web. bridged says whether packets
// between pods of one bridge pass iptables. If not, answers would go past the node,
// and so other must be seen with the node's address.
func (n *testNode) ways(web, other *node.Pod, bridged bool) []way {
	other4, other6 := n.addresses(other)
	if !bridged {
		other4, other6 = dualGate4, dualGate6
	}
	ways := []way{
		{"outside", n.Outside, node.NodeIPv4, node.OutsideIPv4},
		{"outside", n.Outside, node.NodeIPv6, node.OutsideIPv6},
		{"node", n.Place, "127.0.0.1", dualGate4},
		{"node", n.Place, "::1", ""},
	}
	for _, address := range []string{node.NodeIPv4, dualGate4} {
		ways = append(ways, way{"node", n.Place, address, address},
			way{"other pod", n.podPlace(other), address, other4}, way{"pod itself", n.podPlace(web), address, dualGate4})
	}
	for _, address := range []string{node.NodeIPv6, dualGate6} {
		ways = append(ways, way{"node", n.Place, address, address},
			way{"other pod", n.podPlace(other), address, other6}, way{"pod itself", n.podPlace(web), address, dualGate6})
	}
	return ways
}

func (n *testNode) checkWay(w way, hostIP string, port int32, circumstance string) {
	n.t.Helper()
	for _, protocol := range []runtimeapi.Protocol{tcp, udp} {
		what := fmt.Sprintf("%s: %v from %s to %s, hostIP %q", circumstance, protocol, w.name, w.address, hostIP)
		if !serves(hostIP, w.address) {
			if name, _, err := n.ask(w.from, protocol, w.address, port, silence); err == nil {
				n.t.Errorf("%s: answered by %s", what, name)
			}
			continue
		}
		name, client, err := n.ask(w.from, protocol, w.address, port, answerTimeout)
		if err != nil || name != "web" {
			n.t.Fatalf("%s: answered by %q, want web: %v", what, name, err)
		}
		if client != w.client {
			n.t.Errorf("%s: the pod sees the client as %s, want %s", what, client, w.client)
		}
	}
}

// checkShown looks for the pod's hostPorts in what crinetctl pods prints.
func (n *testNode) checkShown(pod *node.Pod) {
	n.t.Helper()
	table, err := n.Crinetctl(n.ctx, "pods")
	n.ok(err)
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	var shown []string
	for _, state := range states {
		if state.SandboxID == pod.ID {
			shown = state.HostPorts
		}
	}
	if len(shown) != 2*len(hostIPs) {
		n.t.Errorf("crinetctl pods -o json shows %d hostPorts, want %d: %q", len(shown), 2*len(hostIPs), shown)
	}
	for _, want := range []string{
		"tcp *:8080", "udp *:8080", "tcp 0.0.0.0:8081", "udp [::]:8082",
		"udp " + node.NodeIPv4 + ":8083", "tcp [" + node.NodeIPv6 + "]:8084", "tcp 127.0.0.1:8085",
	} {
		if !slices.Contains(shown, want) || !strings.Contains(table, want) {
			n.t.Errorf("crinetctl pods does not show %q: %q\n%s", want, shown, table)
		}
	}
}

// checkHairpinMode checks what --hairpin-mode does: with none, a pod gets no answer
// from its own hostPort, and all others do.
func (n *testNode) checkHairpinMode(client *node.Client) {
	n.t.Helper()
	for _, mode := range []string{"none", "hairpin-veth"} {
		n.ok(n.StopCrinetd())
		n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), "--hairpin-mode="+mode)...))
		n.awaitNetwork(client, true)
		pod := n.servePod(client, mode, bothPorts("", 9000)...)
		for _, address := range []string{node.NodeIPv4, node.NodeIPv6} {
			n.answers(n.Outside, address, 9000, mode)
			if mode == "none" {
				n.silent(n.podPlace(pod), address, 9000)
			} else {
				n.answers(n.podPlace(pod), address, 9000, mode)
			}
		}
		n.ok(pod.StopAndRemove(n.ctx))
	}
}
