package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// otherConfDir is the conf dir of a runtime handler.
const otherConfDir = "/etc/cni/other.d"

// handler is containerd's configuration of one more runtime handler.
func handler(name, runc, settings string) string {
	const table = "plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes."
	return fmt.Sprintf(`
  [%[1]s%[2]s]
    runtime_type = "io.containerd.runc.v2"
    %[4]s
    [%[1]s%[2]s.options]
      BinaryName = %[3]q
`, table, name, runc, settings)
}

// Review row A5: the pods of a runtime handler with a conf dir of its own are
// left alone, also while crinet has no network, and are crinet's with
// --runtime-handlers.
func TestHandlerWithItsOwnConfDir(t *testing.T) {
	t.Parallel()
	n := newNodeOf(t, node.Options{ContainerdConfig: handler("other", kit.Tool("runc"), `cni_conf_dir = "`+otherConfDir+`"
    cni_max_conf_num = 1`)})
	n.ok(n.WriteFile(otherConfDir+"/10-other.conflist", otherBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.notReady(client, "no usable CNI network")
	pod, err := client.RunPodBy(n.ctx, "other", n.portPod("alone"))
	n.ok(err)
	if addr := n.address(pod); !strings.HasPrefix(addr, "10.21.") {
		t.Errorf("the handler's pod has the address %s, want one of the handler's own network", addr)
	}
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	if s := n.status(); len(states) != 0 || s.Runtime.Unserved["other"] != otherConfDir || !strings.Contains(s.Notice, "--runtime-handlers=other") {
		t.Errorf("crinetctl shows the pods %+v and says %q, want no pod and the handler", states, s.Notice)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.sh("test ! -e %s/%s", otherConfDir, crinetConf)
	n.clean()

	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.awaitNetwork(client, true)
	n.restart(client, append([]string{"--runtime-handlers=other"}, cniFlags...)...)
	n.eventually("the handler's pods are crinet's", func() bool {
		pod, err := client.RunPodBy(n.ctx, "other", n.portPod("served"))
		n.ok(err)
		states, err := n.PodStates(n.ctx)
		n.ok(err)
		served := slices.ContainsFunc(states, func(s node.PodState) bool { return s.SandboxID == pod.ID })
		if served && !strings.HasPrefix(n.address(pod), "10.10.") {
			t.Errorf("crinet's pod has the address %s", n.address(pod))
		}
		n.ok(pod.StopAndRemove(n.ctx))
		return served
	})
}

// Review row A5: a runtime that attaches pods to more than one configuration is
// reported.
func TestMaxConfNum(t *testing.T) {
	t.Parallel()
	n, client := startInstalled(t, node.Options{ContainerdCNI: "    max_conf_num = 2"})
	n.awaitNetwork(client, true)
	if s := n.status(); !strings.Contains(s.Notice, "max_conf_num is 2") || !strings.Contains(s.Notice, "config.toml") {
		t.Errorf("crinetctl status notes %q, want max_conf_num and where to change it", s.Notice)
	}
}
