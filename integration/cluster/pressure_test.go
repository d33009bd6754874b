package cluster_test

import (
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// busyConf is a network with an agent that admits one ADD in a while, which is the
// test plugin's script.
const busyConf = `{"cniVersion": "1.0.0", "name": "busy", "plugins": [
	{"type": "bridge", "bridge": "busy0", "isDefaultGateway": true, "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local"}},
	{"type": "testplugin", "dir": "` + busyDir + `"}]}`

const busyDir = "/run/testplugin"

// A Deployment comes up on a network whose agent asks most ADDs to try again later: the
// kubelet sees no failure and makes no sandbox twice.
func TestBusyNetworkUnderKubelet(t *testing.T) {
	t.Parallel()
	const pods, every = 30, 200 * time.Millisecond
	c := newCluster(t, cluster.Options{NoDNS: true, Network: map[string]string{"10-busy.conflist": busyConf},
		Prepare: func(n *node.Node) error { return n.InstallPlugin("testplugin", kit.Program("testplugin")) }})
	m := c.Members[0]
	c.ok(script.SetRules(m.Path(busyDir), script.Rule{Verb: "ADD", Do: script.Admit, Delay: every, Code: 11, Text: "the agent is busy"}))
	c.apply(web, "crowd", pods, "", "")
	c.pods("crowd", pods)
	calls, err := script.Calls(m.Path(busyDir))
	c.ok(err)
	refused, sandboxes := 0, make(map[string]string)
	for _, call := range calls {
		if call.Verb != "ADD" {
			continue
		}
		if call.Do == script.Fail {
			refused++
		}
		if earlier, known := sandboxes[call.Pod]; known && earlier != call.ContainerID {
			t.Errorf("pod %s has had two sandboxes: %s and %s", call.Pod, earlier, call.ContainerID)
		}
		sandboxes[call.Pod] = call.ContainerID
	}
	if refused == 0 {
		t.Error("the agent has refused nobody: nothing is shown")
	}
	if events := c.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}"); events != "" {
		t.Errorf("the kubelet saw failures: %s", events)
	}
	retries, err := m.Metric(c.ctx, "crinet_add_retries_total")
	c.ok(err)
	t.Logf("%d pods, %d ADDs refused, %v tried again in place", pods, refused, retries)
	c.ok(script.SetRules(m.Path(busyDir)))
	c.kubectl("delete", "deployment", "crowd")
	c.gone("crowd")
	if left := c.agree(m); left != 0 {
		t.Errorf("%d pods are left", left)
	}
	if out, err := m.Crinetctl(c.ctx, "why"); err != nil || strings.Contains(out, "default/crowd") {
		t.Errorf("crinetctl why tells of failures: %v\n%s", err, out)
	}
}
