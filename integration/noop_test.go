package integration_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// runtimeNetwork is a configuration that is containerd's own.
const runtimeNetwork = `{"cniVersion": "1.0.0", "name": "runtimes", "plugins": [
	{"type": "bridge", "bridge": "runtimes0", "isDefaultGateway": true,
	 "ipam": {"type": "host-local", "subnet": "10.30.0.0/16"}}]}`

// sysctls are those that the noop plugin keeps, for iptables and ip6tables.
var sysctls = []string{
	"/proc/sys/net/bridge/bridge-nf-call-iptables",
	"/proc/sys/net/bridge/bridge-nf-call-ip6tables",
}

// Without a network plugin the runtime networks its pods, and crinetd makes bridged
// traffic visible to iptables.
func TestNoop(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.setSysctls("0")
	n.ok(n.WriteConf("10-runtimes.conflist", runtimeNetwork))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	n.awaitSysctls()

	pod := n.runPod(client, "plain")
	if addr := n.address(pod); !netip.MustParsePrefix("10.30.0.0/16").Contains(netip.MustParseAddr(addr)) {
		t.Errorf("the pod's address is %s, not of containerd's own network", addr)
	}
	files, err := n.Run(n.ctx, "ls", node.ConfDir)
	n.ok(err)
	if files != "10-runtimes.conflist\n" {
		t.Errorf("the conf dir holds %q, want what was there", files)
	}
	n.setSysctls("0")
	n.awaitSysctls()
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// Noop after cni takes crinetd's own configuration away.
func TestNoopAfterCNI(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	const own = "00-crinet.conflist"
	files, err := n.Run(n.ctx, "ls", n.RuntimeConfDir())
	n.ok(err)
	if !strings.Contains(files, own) {
		t.Errorf("%s is not in the conf dir: %q", own, files)
	}
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, "--network-plugin=noop"))
	n.awaitNetwork(client, true)
	files, err = n.Run(n.ctx, "ls", n.RuntimeConfDir())
	n.ok(err)
	if strings.Contains(files, own) {
		t.Errorf("%s is still in the conf dir: %q", own, files)
	}
	n.ok(n.runPod(client, "runtimes-own").StopAndRemove(n.ctx))
	n.noLeftovers()
}

func (n *testNode) setSysctls(value string) {
	n.t.Helper()
	for _, sysctl := range sysctls {
		_, err := n.Run(n.ctx, "sh", "-c", "echo "+value+" > "+sysctl)
		n.ok(err)
	}
}

// awaitSysctls waits until all are 1.
func (n *testNode) awaitSysctls() {
	n.t.Helper()
	// crinetd looks every few seconds.
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := n.Run(n.ctx, "cat", sysctls[0], sysctls[1])
		n.ok(err)
		if out == "1\n1\n" {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the sysctls %q are %q, want 1", sysctls, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
