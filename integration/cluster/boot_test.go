package cluster_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// staticPod is a static pod, by name, with more fields of its spec.
const staticPod = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  terminationGracePeriodSeconds: 1
  %[2]s
  containers:
  - {name: web, image: ` + node.TestImage + `, imagePullPolicy: IfNotPresent}
`

// A kubelet that starts before there is a network: pods in the node's network run,
// others wait, and come up on the right network when it is there. The node turns
// ready with it.
func TestKubeletBeforeNetwork(t *testing.T) {
	t.Parallel()
	const within, attempts = 3 * time.Second, 5
	c := newCluster(t, cluster.Options{Late: true, Network: map[string]string{}, Prepare: func(n *node.Node) error {
		if err := n.WriteFile(cluster.ManifestDir+"/static.yaml", fmt.Sprintf(staticPod, "static", "")); err != nil {
			return err
		}
		return n.WriteFile(cluster.ManifestDir+"/host.yaml", fmt.Sprintf(staticPod, "host", "hostNetwork: true"))
	}})
	m := c.Members[0]
	c.apply(web, "web", 2, "tolerations: [{operator: Exists}]", "")
	host := c.pod("host")
	if host.Status.PodIP != m.IPv4() {
		t.Errorf("the pod in the node's network has address %s, want %s", host.Status.PodIP, m.IPv4())
	}
	c.notReady("NetworkPluginNotReady")
	pods, err := c.Pods(c.ctx, "app in (web,static)")
	c.ok(err)
	for _, pod := range pods {
		if pod.Status.PodIP != "" {
			t.Errorf("pod %s has address %s before there is a network", pod.Metadata.Name, pod.Status.PodIP)
		}
	}
	for try := 1; ; try++ {
		c.ok(m.WriteConf("10-pods.conflist", cluster.BridgeNetwork))
		took := c.untilReady()
		t.Logf("the node was ready %v after its network was configured", took.Round(time.Millisecond))
		if took <= within {
			break
		}
		if try == attempts {
			t.Errorf("the node is never ready within %v of its network", within)
			break
		}
		// Only a kubelet that has just started looks that often.
		c.ok(os.Remove(m.Path(node.ConfDir + "/10-pods.conflist")))
		c.ok(m.Kubelet.Stop())
		c.ok(m.Kubelet.Start())
		c.notReady("NetworkPluginNotReady")
	}
	c.pod("static")
	c.pods("web", 2)
	c.agree(m)
	for _, state := range c.podStates(m) {
		if state.Network != "pods" {
			t.Errorf("pod %s is on network %s, want pods", state.Name, state.Network)
		}
	}
}

// notReady waits until the first node is not ready for that reason.
func (c *testCluster) notReady(reason string) {
	c.t.Helper()
	c.await("the node is not ready", func() error {
		nodes, err := c.Nodes(c.ctx)
		if err != nil || len(nodes) == 0 {
			return fmt.Errorf("there are %d nodes: %w", len(nodes), err)
		}
		if ready := nodes[0].Ready(); ready.Status != "False" || !strings.Contains(ready.Message, reason) {
			return fmt.Errorf("ready is %+v", ready)
		}
		return nil
	})
}

// untilReady is how long it takes the nodes to be ready.
func (c *testCluster) untilReady() time.Duration {
	c.t.Helper()
	began := time.Now()
	c.ok(c.AwaitReady(c.ctx))
	return time.Since(began)
}
