package cluster_test

import (
	"context"
	"path"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// socketRestarts is how often crinetd is restarted under the kubelet.
const socketRestarts = 20

// heldSockets holds crinetd's sockets as systemd does and restarts it again and
// again. The kubelet does not notice: the node stays Ready, and no pod restarts.
func (c *testCluster) heldSockets() {
	m := c.Members[0]
	c.ok(m.StopCrinetd())
	_, err := m.Run(c.ctx, "sh", "-c", "rm -f "+path.Dir(node.CrinetdSocket)+"/*.sock")
	c.ok(err)
	c.ok(m.HoldSockets())
	start := func() {
		c.ok(m.StartCrinetdAgain(c.ctx))
		// The sockets connect whether crinetd runs or not: it does when it answers.
		_, err := m.PodStates(c.ctx)
		c.ok(err)
	}
	start()
	c.ok(c.AwaitReady(c.ctx))
	before, pod := c.transition(), c.pod("steady")
	ctx, stop := context.WithCancel(c.ctx)
	unready := make(chan []string, 1)
	go func() { unready <- c.whileNotReady(ctx) }()
	for range socketRestarts {
		c.ok(m.StopCrinetd())
		start()
	}
	c.apply(web, "late", 1, "", "")
	c.pods("late", 1)
	stop()
	if seen := <-unready; len(seen) > 0 {
		c.t.Errorf("the node was not ready while crinetd was restarted: %q", seen)
	}
	if after := c.transition(); after != before {
		c.t.Errorf("the condition Ready changed at %s while crinetd was restarted, before that at %s", after, before)
	}
	now := c.pod("steady")
	if was, is := pod.Status.ContainerStatuses[0].RestartCount, now.Status.ContainerStatuses[0].RestartCount; is != was || now.Metadata.UID != pod.Metadata.UID {
		c.t.Errorf("the pod restarted %d times while crinetd was restarted", is-was)
	}
	c.agree(m)
}

// transition is when the first node's condition Ready changed last.
func (c *testCluster) transition() string {
	c.t.Helper()
	nodes, err := c.Nodes(c.ctx)
	c.ok(err)
	return nodes[0].Ready().LastTransitionTime
}

// whileNotReady collects what the API server says of the first node while that is
// not ready, until ctx ends.
func (c *testCluster) whileNotReady(ctx context.Context) (seen []string) {
	for ctx.Err() == nil {
		if nodes, err := c.Nodes(ctx); err == nil && nodes[0].Ready().Status != "True" {
			seen = append(seen, nodes[0].Ready().Message)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return seen
}
