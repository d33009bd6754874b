package integration_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// Review row A24: a network without STATUS whose every ADD fails counts as ready.
// After some failures in a row NetworkReady's message, crinetctl status and a
// metric say so, until a pod gets its network again.
func TestFailingAddsAreTold(t *testing.T) {
	t.Parallel()
	const metric, told = "crinet_add_failures_in_a_row", "no subnet.env"
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Do: script.Fail, Text: told})
	for range 3 {
		if condition, err := client.NetworkReady(n.ctx); err != nil || strings.Contains(condition.GetMessage(), told) {
			t.Errorf("NetworkReady says %v after single failures, %v", condition, err)
		}
		if _, err := client.RunPod(n.ctx, n.PodConfig("fails")); err == nil || !strings.Contains(err.Error(), told) {
			t.Errorf("the pod ends with %v, want the plugin's words", err)
		}
	}
	condition, err := client.NetworkReady(n.ctx)
	n.ok(err)
	if !condition.GetStatus() || !strings.Contains(condition.GetMessage(), "the last 3 ADDs of network recorded failed") || !strings.Contains(condition.GetMessage(), told) {
		t.Errorf("NetworkReady is %v, want it true and to tell of the failures", condition)
	}
	if failures, err := n.Metric(n.ctx, metric); err != nil || failures != 3 {
		t.Errorf("%s is %v, %v", metric, failures, err)
	}
	out, err := n.Crinetctl(n.ctx, "status")
	n.ok(err)
	if !strings.Contains(out, "3 in a row") || !strings.Contains(out, told) {
		t.Errorf("crinetctl status does not tell of the failures:\n%s", out)
	}
	n.setRules()
	n.worksAgain(client, "works")
	if failures, err := n.Metric(n.ctx, metric); err != nil || failures != 0 || strings.Contains(n.status().Notice, told) {
		t.Errorf("after a success %s is %v, %v, and the notice %q", metric, failures, err, n.status().Notice)
	}
}

// Review row B2: a bin dir that can only be read does not end crinetd: it serves,
// says so, and installs the plugin when it can.
func TestReadOnlyBinDir(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.sh("mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s", node.BinDir)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.notReady(client, node.BinDir, "read-only")
	if _, err := client.Runtime.Version(n.ctx, &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("CRI is not served: %v", err)
	}
	n.sh("umount %s", node.BinDir)
	n.worksAgain(client, "writable")
}

// Review row B3: a DEL that can never work does not keep a pod for ever: an
// operator has crinetd forget it, with a reason, and the pod goes.
func TestForgetPodThatCannotBeRemoved(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod := n.runPod(client, "stuck")
	if _, err := n.Crinetctl(n.ctx, "forget", pod.ID, "--reason=too early"); err == nil || !strings.Contains(err.Error(), "attached") {
		t.Errorf("the network of a pod that runs is forgotten: %v", err)
	}
	n.setRules(script.Rule{Verb: "DEL", Do: script.Fail, Text: "the datastore is gone for good"})
	if err := pod.StopAndRemove(n.ctx); err == nil {
		t.Error("the pod is removed although DEL fails")
	}
	out, err := n.Crinetctl(n.ctx, "forget", pod.ID, "--reason=its datastore is gone")
	n.ok(err)
	if !strings.Contains(out, "default/stuck") || !strings.Contains(out, pod.ID) {
		t.Errorf("crinetctl forget prints %q", out)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	log, err := n.Log("crinetd")
	n.ok(err)
	if len(states) != 0 || !strings.Contains(log, "its datastore is gone") {
		t.Errorf("crinetctl pods shows %+v, and the log has the reason: %t", states, strings.Contains(log, "its datastore is gone"))
	}
}

// Review row B8: a kubelet that asks Status every 100 ms is answered at once
// while containerd hangs; the answer's age is told, and RuntimeReady is false
// after half a minute, until containerd goes on.
func TestStatusWhileContainerdHangs(t *testing.T) {
	t.Parallel()
	const often, slowest, hung = 50 * time.Millisecond, time.Second, 35 * time.Second
	n, client := newSeedNode(t)
	ctx, stop := context.WithCancel(n.ctx)
	defer stop()
	answers := make(chan []statusAnswer, 1)
	go func() { answers <- askAsKubelet(ctx, client) }()
	n.ok(n.SignalContainerd(unix.SIGSTOP))
	stopped := time.Now()
	time.Sleep(hung) // what is measured is this time
	n.ok(n.SignalContainerd(unix.SIGCONT))
	n.eventually("RuntimeReady is true again", func() bool {
		resp, err := client.Runtime.Status(n.ctx, &runtimeapi.StatusRequest{})
		n.ok(err)
		return slices.ContainsFunc(resp.GetStatus().GetConditions(), func(c *runtimeapi.RuntimeCondition) bool {
			return c.GetType() == runtimeapi.RuntimeReady && c.GetStatus()
		})
	})
	stop()
	all := <-answers
	var took []time.Duration
	var unready time.Duration
	for _, a := range all {
		if a.err != nil {
			t.Errorf("Status after %v: %v", a.began.Sub(stopped), a.err)
			continue
		}
		took = append(took, a.took)
		if !a.ready && unready == 0 {
			unready = a.began.Sub(stopped)
			if !strings.Contains(a.message, "has not answered Status for 30s") {
				t.Errorf("RuntimeReady says %q", a.message)
			}
		}
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("%d answers: median %v, 99 of 100 within %v, slowest %v; RuntimeReady was false %v after containerd stopped",
		len(took), took[len(took)/2], p99, took[len(took)-1], unready)
	if p99 > often || took[len(took)-1] > slowest {
		t.Errorf("Status took %v in 99 of 100 calls and %v at most, want %v and %v", p99, took[len(took)-1], often, slowest)
	}
	if unready < 29*time.Second || unready > hung {
		t.Errorf("RuntimeReady was false after %v, want 30 s", unready)
	}
	n.worksAgain(client, "after")
}
