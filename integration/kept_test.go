package integration_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// keptPods is how many pods lose their plugins.
const keptPods = 20

// The bin dir is deleted under pods whose plugins were executed, by a package upgrade
// that goes wrong (kubernetes/kubernetes#115629): all of them are removed, by a crinetd
// that was killed as well, and the copies go with the last pod that needs them.
func TestBinDirRemovedUnderPods(t *testing.T) {
	t.Parallel()
	// Otherwise containerd needs the loopback plugin for DEL; crinetctl install sets this.
	n := newNodeOf(t, node.Options{Containerd: node.Containerd24, ContainerdCNI: "    use_internal_loopback = true"})
	off := []string{"--builtin-plugins=off"}
	client := n.startRecorded(off...)
	pods := make([]*node.Pod, keptPods)
	n.each(keptPods, 4, func(i int) (err error) {
		pods[i], err = client.RunPod(n.ctx, n.PodConfig(fmt.Sprintf("pod-%d", i)))
		return err
	})
	n.sh("rm -r %s/*", node.BinDir)
	n.each(keptPods/2, 4, func(i int) error { return n.patiently(client, pods[i].ID) })
	n.ok(n.KillCrinetd())
	n.sh("rm -rf %s", node.BinDir)
	n.ok(n.StartCrinetd(n.ctx, append(off, cniFlags...)...))
	n.awaitNetwork(client, false)
	n.each(keptPods/2, 4, func(i int) error { return n.patiently(client, pods[keptPods/2+i].ID) })
	n.clean()
	if dels := len(n.calls("DEL")); dels < keptPods {
		t.Errorf("the last plugin's DEL was called %d times, want %d or more", dels, keptPods)
	}
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append(off, cniFlags...)...))
	n.eventually("the copies are gone", func() bool {
		entries, err := os.ReadDir(n.Path(stateDir + "/plugins"))
		n.ok(err)
		return len(entries) == 0
	})
}

// patiently removes a pod as a kubelet does, which tries again: the runtime cannot call
// crinet before crinetd has put its plugin back.
func (n *testNode) patiently(client *node.Client, id string) error {
	ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
	defer cancel()
	for {
		err := client.RemovePod(ctx, id)
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}
