package integration_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// hostServer runs nodetest on the node itself, as a process of the host, and
// returns its process id in the node's namespace.
func (n *testNode) hostServer(address string) (pid string, stop func()) {
	n.t.Helper()
	cmd := n.Command(n.ctx, kit.Program("testimage"), "serve", "-http", address, "-udp", address)
	n.ok(n.Start(cmd))
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()         // it was killed
		}
	}
	n.t.Cleanup(stop)
	host, port, err := net.SplitHostPort(address)
	n.ok(err)
	if host == "" {
		host = node.NodeIPv4
	}
	n.awaitOK(answerTimeout, func() error {
		_, err := n.Get(n.ctx, "http://"+net.JoinHostPort(host, port)+"/")
		return err
	})
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	n.ok(err)
	for line := range strings.Lines(string(text)) {
		if pids, found := strings.CutPrefix(line, "NSpid:"); found {
			fields := strings.Fields(pids)
			return fields[len(fields)-1], stop
		}
	}
	n.t.Fatalf("no NSpid in the status of process %d", cmd.Process.Pid)
	return "", nil
}

// intrude makes a place send packets for 127.0.0.0/8 to the node, as an attacker
// does.
func (n *testNode) intrude(place *node.Place, gateway string) {
	n.t.Helper()
	n.sysctl(place, "ipv4/conf/all/route_localnet", "1")
	for _, args := range []string{"addr del 127.0.0.1/8 dev lo", "route add 127.0.0.0/8 via " + gateway} {
		_, err := place.Run(n.ctx, "ip", strings.Fields(args)...)
		n.ok(err)
	}
}

// Services on the node's loopback cannot be reached from outside or from a pod
// (CVE-2020-8558), although route_localnet is set on the bridge for hostPorts.
func TestLoopbackOfNodeIsClosed(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	spy := n.runPod(client, "spy")
	if got := n.routeLocalnet(dualDevice); got != "0" {
		t.Errorf("route_localnet is %s on the bridge before there are hostPorts", got)
	}
	web := n.servePod(client, "web", append(bothPorts("", 8080), bothPorts("127.0.0.1", 8081)...)...)
	if got := n.routeLocalnet(dualDevice); got != "1" {
		t.Errorf("route_localnet is %s on the bridge, want 1 for 127.0.0.1", got)
	}
	for _, device := range []string{"all", "default", node.Uplink} {
		if got := n.routeLocalnet(device); got != "0" {
			t.Errorf("route_localnet is %s for %s, where nobody needs it", got, device)
		}
	}
	_, _ = n.hostServer("127.0.0.1:9099")
	host, _, err := n.ask(n.Place, tcp, "127.0.0.1", 9099, answerTimeout)
	n.ok(err)
	n.answers(n.Place, "127.0.0.1", 8081, "web")
	neighbours := []*node.Place{n.Outside, n.podPlace(spy)}
	n.intrude(neighbours[0], node.NodeIPv4)
	n.intrude(neighbours[1], dualGate4)
	for _, neighbour := range neighbours {
		for _, port := range []int32{9099, 8081} {
			n.silent(neighbour, "127.0.0.1", port)
		}
	}
	// Without crinetd's guard the pod would get in.
	n.ok(n.StopCrinetd())
	_, err = n.Run(n.ctx, "nft", "delete", "table", "inet", "crinet")
	n.ok(err)
	n.answers(neighbours[1], "127.0.0.1", 9099, host)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	for _, neighbour := range neighbours {
		n.silent(neighbour, "127.0.0.1", 9099)
	}
	n.ok(web.StopAndRemove(n.ctx))
	n.noMappings()
}

func (n *testNode) routeLocalnet(device string) string {
	n.t.Helper()
	value, err := n.Run(n.ctx, "cat", "/proc/sys/net/ipv4/conf/"+device+"/route_localnet")
	n.ok(err)
	return strings.TrimSpace(value)
}

// route_localnet is switched off with the last pod that needs it.
func TestRouteLocalnetEnds(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	first, err := client.RunPod(n.ctx, n.withPorts("first", bothPorts("", 8080)...))
	n.ok(err)
	second, err := client.RunPod(n.ctx, n.withPorts("second", bothPorts("", 8081)...))
	n.ok(err)
	n.ok(first.StopAndRemove(n.ctx))
	if got := n.routeLocalnet(dualDevice); got != "1" {
		t.Errorf("route_localnet is %s on the bridge, want 1 for the second pod", got)
	}
	n.ok(second.StopAndRemove(n.ctx))
	if got := n.routeLocalnet(dualDevice); got != "0" {
		t.Errorf("route_localnet is %s on the bridge without any hostPort", got)
	}
	n.noMappings()
	n.noLeftovers()
}

// Traffic that only passes the node reaches its destination, also on the port of a
// hostPort.
func TestTransitIsUntouched(t *testing.T) {
	t.Parallel()
	n, client := newDualNode(t)
	n.servePod(client, "web", bothPorts("", 8080)...)
	other := n.runPod(client, "other")
	n.serveIn(other, ":8080", ":8080")
	other4, other6 := n.addresses(other)
	n.routeToPods()
	for _, address := range []string{other4, other6} {
		n.answers(n.Outside, address, 8080, "other")
		n.answers(n.Place, address, 8080, "other")
	}
	// The outside has a server on that port as well.
	outside := n.Outside.Command(n.ctx, kit.Program("testimage"), "serve", "-http", ":8080", "-udp", ":8080")
	n.ok(n.Outside.Start(outside))
	defer func() {
		_ = outside.Process.Kill() // it may have ended
		_ = outside.Wait()         // it was killed
	}()
	host, err := n.Outside.AwaitGet(n.ctx, "http://"+node.OutsideIPv4+":8080/")
	n.ok(err)
	name, _, _ := strings.Cut(host, " ")
	for _, address := range []string{node.OutsideIPv4, node.OutsideIPv6} {
		n.answers(n.podPlace(other), address, 8080, name)
		n.answers(n.Place, address, 8080, name)
	}
	for _, address := range []string{node.NodeIPv4, node.NodeIPv6} {
		n.answers(n.Outside, address, 8080, "web")
	}
}

// routeToPods tells the outside the way to the pods' addresses.
func (n *testNode) routeToPods() {
	n.t.Helper()
	for _, args := range []string{
		"route add " + dualSubnet4 + " via " + node.NodeIPv4,
		"-6 route add fd00:50::/64 via " + node.NodeIPv6,
	} {
		_, err := n.Outside.Run(n.ctx, "ip", strings.Fields(args)...)
		n.ok(err)
	}
}
