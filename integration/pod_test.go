package integration_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// A pod on the seed's bridge has all that a pod needs, and leaves nothing, whether
// crinetd runs the plugins itself or their binaries: the same servers see it under the
// same addresses.
func TestPodOnSeedBridge(t *testing.T) {
	t.Parallel()
	for how, flags := range map[string][]string{"built in": nil, "executed": {"--builtin-plugins=off"}} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			n, client := newNodeWith(t, "10-mynet.conf", seedBridge, append(slices.Clone(cniFlags), flags...)...)
			n.awaitNetwork(client, true)
			n.saysHow("bridge", how)
			n.hasAllThatAPodNeeds(client)
		})
	}
}

func (n *testNode) hasAllThatAPodNeeds(client *node.Client) {
	t := n.t
	t.Helper()
	first, second := n.runPod(client, "first"), n.runPod(client, "second")
	addr := n.inspectedAddress(first)
	if !netip.MustParsePrefix(seedSubnet).Contains(addr) {
		t.Errorf("address %s is not in %s", addr, seedSubnet)
	}
	web, err := first.RunContainer(n.ctx, "web", node.TestImage)
	n.ok(err)
	other, err := second.RunContainer(n.ctx, "other", node.TestImage)
	n.ok(err)

	page, err := n.AwaitGet(n.ctx, "http://"+addr.String()+"/")
	n.ok(err)
	if want := "first " + seedGateway + ":"; !strings.HasPrefix(page, want) {
		t.Errorf("the node gets %q from the pod, want %q...", page, want)
	}
	page, err = other.Exec(n.ctx, "/nodetest", "get", "http://"+addr.String()+"/")
	n.ok(err)
	if want := "first " + n.address(second) + ":"; !strings.HasPrefix(page, want) {
		t.Errorf("the other pod gets %q from the pod, want %q...", page, want)
	}
	n.checkReachesNode(web)
	n.checkReachesOutside(web)

	// Once over a stream of its own, once in a call.
	out, err := n.Crictl(n.ctx, node.CrinetdSocket, "exec", web.ID, "sh", "-c", "echo $((6*7))")
	n.ok(err)
	if out != "42\n" {
		t.Errorf("crictl exec printed %q", out)
	}
	out, err = web.Exec(n.ctx, "sh", "-c", "echo $((6*7))")
	n.ok(err)
	if out != "42\n" {
		t.Errorf("ExecSync printed %q", out)
	}
	log, err := n.Crictl(n.ctx, node.CrinetdSocket, "logs", web.ID)
	n.ok(err)
	if want := "GET / " + seedGateway + ":"; !strings.Contains(log, want) {
		t.Errorf("crictl logs printed %q, want %q", log, want)
	}
	n.checkPortForward(first)

	for _, pod := range []*node.Pod{first, second} {
		_, err := n.Crictl(n.ctx, node.CrinetdSocket, "rmp", "--force", pod.ID)
		n.ok(err)
	}
	n.noLeftovers()
}

// inspectedAddress is what crictl inspectp shows.
func (n *testNode) inspectedAddress(pod *node.Pod) netip.Addr {
	n.t.Helper()
	out, err := n.Crictl(n.ctx, node.CrinetdSocket, "inspectp", "-o", "json", pod.ID)
	n.ok(err)
	var inspected struct {
		Status struct {
			Network struct {
				IP string `json:"ip"`
			} `json:"network"`
		} `json:"status"`
	}
	n.ok(json.Unmarshal([]byte(out), &inspected))
	addr, err := netip.ParseAddr(inspected.Status.Network.IP)
	n.ok(err)
	return addr
}

// checkReachesNode lets the container talk to a server of the node.
func (n *testNode) checkReachesNode(c *node.Container) {
	n.t.Helper()
	n.checkReaches(c, n.Place, node.NodeIPv4, "10.10.")
}

// checkReachesOutside lets the container talk to a server beyond the uplink,
// which sees the node's address.
func (n *testNode) checkReachesOutside(c *node.Container) {
	n.t.Helper()
	n.checkReaches(c, n.Outside, node.OutsideIPv4, node.NodeIPv4)
}

func (n *testNode) checkReaches(c *node.Container, place *node.Place, addr, source string) {
	n.t.Helper()
	listener, err := place.Listen("tcp", net.JoinHostPort(addr, "8081"))
	n.ok(err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(r.RemoteAddr)) // the client reports what it got
	})}
	go func() { _ = server.Serve(listener) }() // until it is closed
	defer server.Close()
	out, err := c.Exec(n.ctx, "/nodetest", "get", "http://"+listener.Addr().String()+"/")
	n.ok(err)
	if !strings.HasPrefix(out, source) {
		n.t.Errorf("%s sees the pod as %q, want %s", addr, out, source)
	}
}

func (n *testNode) checkPortForward(pod *node.Pod) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	cmd := n.Command(ctx, "crictl", "--runtime-endpoint", "unix://"+node.CrinetdSocket, "port-forward", pod.ID, "8080:80")
	stdout, err := cmd.StdoutPipe()
	n.ok(err)
	n.ok(n.Start(cmd))
	defer func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		n.t.Fatalf("crictl port-forward said %q: %v", line, err)
	}
	page, err := n.Get(ctx, "http://127.0.0.1:8080/")
	n.ok(err)
	if want := pod.Config.GetHostname() + " 127.0.0.1:"; !strings.HasPrefix(page, want) {
		n.t.Errorf("the forwarded page is %q, want %q...", page, want)
	}
}

// seedHostLocal is the seed's IPAM configuration; its gateway is the bridge's address.
const seedHostLocal = `{
	"cniVersion": "0.3.0",
	"name": "mynet",
	"type": "bridge",
	"bridge": "mynet0",
	"isGateway": true,
	"ipam": {
		"type": "host-local",
		"subnet": "10.10.0.0/16",
		"rangeStart": "10.10.1.20",
		"rangeEnd": "10.10.3.50",
		"gateway": "10.10.0.254",
		"routes": [
			{"dst": "0.0.0.0/0"},
			{"dst": "192.168.0.0/16", "gw": "10.10.5.1"}
		],
		"dataDir": "/run/my-orchestrator/container-ipam-state"
	}
}`

func TestPodOnSeedHostLocal(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-mynet.conf", seedHostLocal, cniFlags...)
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "ranged")
	addr, err := netip.ParseAddr(n.address(pod))
	n.ok(err)
	if addr.Less(netip.MustParseAddr("10.10.1.20")) || netip.MustParseAddr("10.10.3.50").Less(addr) {
		t.Errorf("address %s is not in the range 10.10.1.20-10.10.3.50", addr)
	}
	shell, err := pod.RunContainer(n.ctx, "shell", node.BusyboxImage, "sleep", "3600")
	n.ok(err)
	routes, err := shell.Exec(n.ctx, "ip", "route")
	n.ok(err)
	for _, want := range []string{"default via 10.10.0.254 ", "192.168.0.0/16 via 10.10.5.1 "} {
		if !strings.Contains(routes, want) {
			t.Errorf("the pod's routes lack %q:\n%s", want, routes)
		}
	}
	state := "/run/my-orchestrator/container-ipam-state/mynet"
	if files, err := n.Run(n.ctx, "ls", state); err != nil || !strings.Contains(files, addr.String()+"\n") {
		t.Errorf("the address is not in %s: %q, %v", state, files, err)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	if files, err := n.Run(n.ctx, "ls", state); err != nil || strings.Contains(files, addr.String()+"\n") {
		t.Errorf("the address is still in %s: %q, %v", state, files, err)
	}
	n.noLeftovers()
}

// crinetd passes a pod in the node's network, also while there is no network for
// other pods.
func TestHostNetworkPod(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, false)
	config := n.PodConfig("host")
	config.Hostname = "" // it has the node's
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	pod, err := client.RunPod(n.ctx, config)
	n.ok(err)
	_, err = pod.RunContainer(n.ctx, "web", node.HostnetImage)
	n.ok(err)
	_, err = n.Outside.AwaitGet(n.ctx, "http://"+net.JoinHostPort(node.NodeIPv4, "12003")+"/")
	n.ok(err)
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// Without a network a pod is refused before anything exists, with the reason.
func TestPodIsRefusedWithoutNetwork(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, "--network-plugin=nosuchnet"))
	client := n.client(node.CrinetdSocket)
	message := n.awaitNetwork(client, false)
	for _, want := range []string{"nosuchnet", "bridge", "host-local"} {
		if !strings.Contains(message, want) {
			t.Errorf("NetworkReady says %q, want it to name %s", message, want)
		}
	}
	_, err := client.RunPod(n.ctx, n.PodConfig("refused"))
	if err == nil || !strings.Contains(err.Error(), "nosuchnet") {
		t.Errorf("RunPodSandbox answers %v, want a refusal that names nosuchnet", err)
	}
	n.noLeftovers()
}
