package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/crinet-project/crinet/integration/node"
)

// exclusive is what Cilium does with cni.exclusive=true, with a shell in the
// place of its inotify: whatever is not its own is renamed.
const exclusive = `cd ` + node.ConfDir + `; while :; do
	[ ! -e ` + crinetConf + ` ] || mv ` + crinetConf + ` ` + crinetConf + `.cilium_bak
	sleep 0.05
done`

// Review row A4: Cilium's exclusive mode takes crinet's configuration out of a
// shared conf dir whenever it appears. The node is not ready and says who does
// it; no pod comes up beside crinet; when Cilium lets go, all is well.
func TestCiliumTakesTheConfDirForItself(t *testing.T) {
	t.Parallel()
	n := newSharedNode(t)
	n.ok(n.WriteConf("05-cilium.conflist", bridged("cilium", "10.58.0.0/16")))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	cmd := n.Command(n.ctx, "sh", "-c", exclusive)
	n.ok(n.Start(cmd))
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have been killed before
		_ = cmd.Wait()         // it was killed
	})
	n.eventually("NetworkReady says that Cilium removes the file", func() bool {
		condition, err := client.NetworkReady(n.ctx)
		n.ok(err)
		return !condition.GetStatus() && strings.Contains(condition.GetMessage(), "Cilium") && strings.Contains(condition.GetMessage(), "cni.exclusive=false")
	})
	var up []*node.Pod
	refused := 0
	for i := range 10 {
		pod, err := client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("exclusive-%d", i)))
		switch {
		case err == nil:
			up = append(up, pod)
		case status.Code(err) == codes.FailedPrecondition:
			refused++
		default:
			t.Errorf("a pod ends with %v, want it up or refused", err)
		}
	}
	t.Logf("%d pods were refused, %d came up", refused, len(up))
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	for _, pod := range up {
		if !slices.ContainsFunc(states, func(s node.PodState) bool { return s.SandboxID == pod.ID }) {
			t.Errorf("pod %s came up beside crinet", pod.Config.GetMetadata().GetName())
		}
	}
	if bypassed, err := n.Metric(n.ctx, "crinet_bypassed_pods_total"); err != nil || bypassed != 0 {
		t.Errorf("crinet_bypassed_pods_total is %v, %v", bypassed, err)
	}
	n.ok(cmd.Process.Kill())
	for _, pod := range up {
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.worksAgain(client, "alone")
}
