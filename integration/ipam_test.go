package integration_test

import (
	"net/netip"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// rangesNetwork takes its addresses from the node's pod CIDR alone.
const rangesNetwork = `{"cniVersion": "1.0.0", "name": "ranges", "plugins": [{"type": "bridge", "bridge": "ranges0",
	"isDefaultGateway": true, "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local"}}]}`

// setPodCIDR is what the kubelet does when it has learnt the node's pod CIDR.
func (n *testNode) setPodCIDR(client *node.Client, cidr string) error {
	_, err := client.Runtime.UpdateRuntimeConfig(n.ctx, &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
	})
	return err
}

// checkAddresses fails the test unless a pod has one address in each of the
// CIDRs, in their order, and answers on each.
func (n *testNode) checkAddresses(pod *node.Pod, cidrs ...string) {
	n.t.Helper()
	addrs, err := pod.Addresses(n.ctx)
	n.ok(err)
	good := len(addrs) == len(cidrs)
	for i := range min(len(addrs), len(cidrs)) {
		good = good && netip.MustParsePrefix(cidrs[i]).Contains(netip.MustParseAddr(addrs[i]))
	}
	if !good {
		n.t.Errorf("pod %s has the addresses %q, want one in each of %q", pod.Config.GetMetadata().GetName(), addrs, cidrs)
	}
	n.reachable(pod)
}

// host-local gets its ranges from the pod CIDR, of one IP family or both. The
// network is not ready until the CIDR is known; then crinetd keeps it.
func TestPodCIDRByUpdateRuntimeConfig(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-ranges.conflist", rangesNetwork, cniFlags...)
	message := n.awaitNetwork(client, false)
	for _, want := range []string{"ranges", "10-ranges.conflist", "pod CIDR", "UpdateRuntimeConfig", "--pod-cidr"} {
		if !strings.Contains(message, want) {
			t.Errorf("NetworkReady says %q, want it to name %s", message, want)
		}
	}
	if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "pod CIDR") {
		t.Errorf("RunPodSandbox without a pod CIDR answers %v", err)
	}
	if _, err := n.client(node.ContainerdSocket).RunPod(n.ctx, n.PodConfig("direct")); err == nil || !strings.Contains(err.Error(), "pod CIDR") {
		t.Errorf("a pod at containerd's socket without a pod CIDR: %v", err)
	}
	if err := n.setPodCIDR(client, "10.50.7.0"); err == nil || !strings.Contains(err.Error(), "10.50.7.0") {
		t.Errorf("a pod CIDR that is none: %v", err)
	}
	n.ok(n.setPodCIDR(client, "10.50.7.0/24"))
	condition, err := client.NetworkReady(n.ctx)
	n.ok(err)
	if !condition.GetStatus() {
		t.Errorf("the pod CIDR is known, but: %v", condition)
	}
	first := n.runPod(client, "first")
	n.checkAddresses(first, "10.50.7.0/24")

	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	second := n.runPod(client, "second")
	n.checkAddresses(second, "10.50.7.0/24")

	n.ok(n.setPodCIDR(client, "10.50.7.0/24,fd00:50:7::/64"))
	third := n.runPod(client, "third")
	n.checkAddresses(third, "10.50.7.0/24", "fd00:50:7::/64")
	n.ok(n.KillCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	fourth := n.runPod(client, "fourth")
	n.checkAddresses(fourth, "10.50.7.0/24", "fd00:50:7::/64")
	n.removeAll(client) // "direct" as well, whose sandbox containerd 1.7 keeps
	n.noLeftovers()
}

// The flag --pod-cidr does the same, for both families, if nobody calls
// UpdateRuntimeConfig.
func TestPodCIDRByFlag(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-ranges.conflist", rangesNetwork,
		append([]string{"--pod-cidr=fd00:51::/64,10.51.0.0/24"}, cniFlags...)...)
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "dual")
	n.checkAddresses(pod, "10.51.0.0/24", "fd00:51::/64") // containerd tells IPv4 first
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}
