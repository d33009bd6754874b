package integration_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// Many pods at once on a network whose agent admits one ADD in a while and asks the
// others to try again later: all get their network in one and the same sandbox, static
// pods and those of kube-system before the others, in the order in which they came.
func TestBusyNetwork(t *testing.T) {
	t.Parallel()
	const pods, every = 30, 150 * time.Millisecond
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Do: script.Admit, Delay: every, Code: 11, Text: "the agent is busy"})
	var mu sync.Mutex // guards what follows
	var failed []error
	var group sync.WaitGroup
	run := func(config *runtimeapi.PodSandboxConfig) {
		group.Go(func() {
			if _, err := client.RunPod(n.ctx, config); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, err)
			}
		})
	}
	for i := range pods {
		run(n.PodConfig(fmt.Sprintf("pod-%02d", i)))
	}
	n.eventually("many wait", func() bool {
		waiting, err := n.Metric(n.ctx, "crinet_add_waiting")
		n.ok(err)
		return waiting >= pods/2
	})
	critical := n.PodConfig("critical")
	critical.Metadata.Namespace = "kube-system"
	static := n.PodConfig("static")
	static.Annotations = map[string]string{"kubernetes.io/config.source": "file"}
	run(critical)
	run(static)
	group.Wait()
	if len(failed) > 0 {
		t.Errorf("%d pods failed, the first: %v", len(failed), failed[0])
	}
	sandboxes := make(map[string]map[string]bool)
	var order []string
	for _, call := range n.calls("ADD") {
		if sandboxes[call.Pod] == nil {
			sandboxes[call.Pod] = make(map[string]bool)
		}
		sandboxes[call.Pod][call.ContainerID] = true
		if call.Do == script.Succeed {
			order = append(order, call.Pod)
		}
	}
	for pod, ids := range sandboxes {
		if len(ids) != 1 {
			t.Errorf("pod %s has had %d sandboxes", pod, len(ids))
		}
	}
	if len(order) != pods+2 {
		t.Errorf("%d pods were admitted: %q", len(order), order)
	}
	// Half of the pods waited when these came, and their sandboxes take a moment.
	for _, pod := range []string{"critical", "static"} {
		if at := slices.Index(order, pod); at > pods-5 {
			t.Errorf("%s was the %d. pod to be admitted: %q", pod, at+1, order)
		}
	}
	n.metricAtLeast("crinet_add_retries_total", 1)
	out, err := n.Crinetctl(n.ctx, "status")
	n.ok(err)
	if !strings.Contains(out, "tried again in place") {
		t.Errorf("crinetctl status does not tell of the retries:\n%s", out)
	}
	n.setRules()
	n.removeAll(client)
	n.clean()
}

// A network without a free address: a pod that comes while another one goes gets that
// one's address, and does not fail.
func TestAddressOfAPodThatGoes(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-recorded.conflist", strings.ReplaceAll(recordedBridge, "10.20.0.0/16", "10.20.0.0/30"))) // one address for pods
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	first := n.runPod(client, "first")
	if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "no IP addresses available") {
		t.Errorf("a pod without an address: %v", err)
	}
	n.setRules(script.Rule{Verb: "DEL", Do: script.Late, Delay: time.Second})
	before := len(n.calls("DEL"))
	gone := make(chan error, 1)
	go func() { gone <- first.Stop(n.ctx) }()
	n.eventually("the first pod's DEL runs", func() bool { return len(n.calls("DEL")) > before })
	if _, err := client.RunPod(n.ctx, n.PodConfig("heir")); err != nil {
		t.Errorf("the pod that came while another one went: %v", err)
	}
	n.ok(<-gone)
	n.setRules()
	n.removeAll(client)
	n.clean()
}
