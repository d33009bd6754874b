package integration_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// Forty pods come and go, eight at a time. No two have one address at once.
func TestManyPods(t *testing.T) {
	t.Parallel()
	const pods, workers = 40, 8
	n, client := newSeedNode(t)
	names := make(chan string)
	var mu sync.Mutex
	seen := make(map[string]string) // address → pod
	live := func(ctx context.Context, name string) error {
		pod, err := client.RunPod(ctx, n.PodConfig(name))
		if err != nil {
			return err
		}
		addrs, err := pod.Addresses(ctx)
		if err != nil {
			return err
		}
		if len(addrs) != 1 {
			return fmt.Errorf("pod %s has the addresses %q", name, addrs)
		}
		mu.Lock()
		other, taken := seen[addrs[0]]
		seen[addrs[0]] = name
		mu.Unlock()
		if taken {
			return fmt.Errorf("pods %s and %s have the address %s", name, other, addrs[0])
		}
		err = pod.StopAndRemove(ctx)
		mu.Lock()
		delete(seen, addrs[0])
		mu.Unlock()
		return err
	}
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for name := range names {
				if err := live(n.ctx, name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range pods {
		names <- fmt.Sprintf("pod-%d", i)
	}
	close(names)
	group.Wait()
	n.noLeftovers()
}

// A pod that somebody runs at containerd's own socket has the same network.
func TestPodAtContainerdDirectly(t *testing.T) {
	t.Parallel()
	n, _ := newSeedNode(t)
	pod := n.runPod(n.client(node.ContainerdSocket), "direct")
	addr := n.address(pod)
	if !netip.MustParsePrefix(seedSubnet).Contains(netip.MustParseAddr(addr)) {
		t.Errorf("address %s is not in %s", addr, seedSubnet)
	}
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	if len(states) != 1 || states[0].Name != "direct" || states[0].Network != "mynet" ||
		len(states[0].Addresses) != 1 || !strings.HasPrefix(states[0].Addresses[0], addr) {
		t.Errorf("crinetctl pods shows %+v, want the pod direct on mynet with %s", states, addr)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// Stop and remove can be repeated.
func TestRemovalIsIdempotent(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	pod := n.runPod(client, "again")
	n.ok(pod.Stop(n.ctx))
	n.ok(pod.Stop(n.ctx))
	n.ok(pod.Remove(n.ctx))
	n.ok(pod.Remove(n.ctx))
	n.noLeftovers()
}

// crinetd comes up before containerd, and outlives its restarts.
func TestContainerdComesAndGoes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	_, err := client.Runtime.Version(n.ctx, &runtimeapi.VersionRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), node.ContainerdSocket) {
		t.Errorf("without containerd a call ends with %v, want Unavailable and the name of its socket", err)
	}
	n.ok(n.StartContainerd(n.ctx))
	n.awaitNetwork(client, true)
	first := n.runPod(client, "first")
	for _, restart := range []struct {
		how string
		end func() error
	}{{"stopped", n.StopContainerd}, {"killed", n.KillContainerd}} {
		n.ok(restart.end())
		n.ok(n.StartContainerd(n.ctx))
		n.awaitNetwork(client, true)
		pod := n.runPod(client, restart.how)
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.ok(first.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// Pods survive a restart of crinetd, whatever the conf dir holds then, and DEL uses
// what ADD used.
func TestCrinetdRestarts(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	first, second := n.runPod(client, "first"), n.runPod(client, "second")
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.ok(first.StopAndRemove(n.ctx))
	n.ok(n.KillCrinetd())
	_, err := n.Run(n.ctx, "rm", node.ConfDir+"/10-mynet.conf")
	n.ok(err)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, false)
	n.ok(second.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// A second crinetd on the same sockets is refused, and the first goes on.
func TestSecondCrinetdIsRefused(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	ctx, cancel := context.WithTimeout(n.ctx, 20*time.Second)
	defer cancel()
	_, err := n.Run(ctx, kit.Crinet("crinetd"), "--state-dir=/run/other", "--network-plugin=cni")
	if err == nil || !strings.Contains(err.Error(), node.CrinetdSocket) || ctx.Err() != nil {
		t.Errorf("a second crinetd ends with %v, want an error that names %s", err, node.CrinetdSocket)
	}
	mode, err := n.Run(n.ctx, "stat", "-c", "%a", node.CrinetdSocket)
	n.ok(err)
	if mode != "600\n" {
		t.Errorf("the socket's mode is %q, want 600", mode)
	}
	n.ok(n.runPod(client, "still").StopAndRemove(n.ctx))
}

// While crinetd is away no pod comes up. When it is back it undoes what was left
// meanwhile.
func TestCrinetdAway(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	pod := n.runPod(client, "before")
	n.ok(n.KillCrinetd())
	direct := n.client(node.ContainerdSocket)
	if _, err := direct.RunPod(n.ctx, n.PodConfig("meanwhile")); err == nil {
		t.Error("a pod was started while crinetd was away")
	}
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.ok(n.runPod(client, "after").StopAndRemove(n.ctx))
	n.ok(pod.StopAndRemove(n.ctx))
	for _, left := range n.sandboxIDs(client) {
		_, err := n.Crictl(n.ctx, node.CrinetdSocket, "rmp", "--force", left)
		n.ok(err)
	}
	n.noLeftovers()
}

// sandboxIDs lists what containerd still knows.
func (n *testNode) sandboxIDs(client *node.Client) []string {
	n.t.Helper()
	resp, err := client.Runtime.ListPodSandbox(n.ctx, &runtimeapi.ListPodSandboxRequest{})
	n.ok(err)
	var ids []string
	for _, sandbox := range resp.GetItems() {
		ids = append(ids, sandbox.GetId())
	}
	slices.Sort(ids)
	return ids
}
