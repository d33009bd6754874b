package integration_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
	"github.com/crinet-project/crinet/runtime/failpoint"
)

// addPoints are the boundaries of the start of a pod with a hostPort, in their
// order; see package failpoint.
var addPoints = []string{
	"forward RunPodSandbox before",
	"journal attaching before", "journal attaching after",
	"exec ADD bridge before", "exec ADD bridge after",
	"exec ADD testplugin before", "exec ADD testplugin after",
	"hairpin set before", "hairpin set after",
	"hostPorts map before", "hostPorts map after",
	"journal attached before", "journal attached after",
	"answer ADD before", "answer ADD after",
	"forward RunPodSandbox after",
	"journal steps before", "journal steps after",
}

// delPoints are the boundaries of its removal.
var delPoints = []string{
	"forward StopPodSandbox before",
	"journal detaching before", "journal detaching after",
	"hostPorts unmap before", "hostPorts unmap after",
	"exec DEL testplugin before", "exec DEL testplugin after",
	"exec DEL bridge before", "exec DEL bridge after",
	"journal delete before", "journal delete after",
	"answer DEL before", "answer DEL after",
	"forward StopPodSandbox after",
	"forward RemovePodSandbox before", "forward RemovePodSandbox after",
}

// failedDelPoints are the further boundaries of a removal in which a plugin fails DEL.
var failedDelPoints = []string{"journal failed before", "journal failed after"}

// A crinetd that is killed at any boundary of a pod's life leaves nothing behind
// after it has started again and the pods are removed.
func TestKilledAtFailPoint(t *testing.T) {
	if os.Getenv("CRINET_TEST_BIN") != "" {
		t.Skip("the binaries that CRINET_TEST_BIN names have no fail points")
	}
	t.Parallel()
	killedAt(t, "", "built in")
	killedAt(t, " executed", "executed", "--builtin-plugins=off")
}

// killedAt does so with a bridge that is run in one way, as crinetctl status says it.
func killedAt(t *testing.T, name, how string, flags ...string) {
	t.Helper()
	t.Run("ADD"+name, func(t *testing.T) {
		t.Parallel()
		n, client := newRecordedNode(t, flags...)
		n.saysHow("bridge", how)
		n.seesTraces(client)
		for _, point := range addPoints {
			n.arm(point)
			pod, err := client.RunPod(n.ctx, n.portPod("up"))
			if err == nil && !strings.HasPrefix(point, "journal steps") {
				t.Errorf("%s: pod %s came up although crinetd died", point, pod.ID)
			}
			n.recoverFrom(point, client, flags...)
		}
	})
	t.Run("DEL"+name, func(t *testing.T) {
		t.Parallel()
		n, client := newRecordedNode(t, flags...)
		for _, point := range append(delPoints, failedDelPoints...) {
			pod, err := client.RunPod(n.ctx, n.portPod("down"))
			if err != nil {
				t.Fatalf("before %s: %v", point, err)
			}
			if slices.Contains(failedDelPoints, point) {
				n.setRules(script.Rule{Verb: "DEL", Do: script.Fail, Text: "not now"})
			}
			n.arm(point)
			if err := pod.StopAndRemove(n.ctx); err == nil {
				t.Errorf("%s: the pod's removal succeeded although crinetd died", point)
			}
			n.setRules()
			n.recoverFrom(point, client, flags...)
		}
	})
}

// Killed between making the file of an address and writing into it whose that is,
// host-local leaves an address that no DEL finds. crinetd frees it with the pod.
func TestKilledInTheMiddleOfAReservation(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Do: script.Hang})
	ended := make(chan error, 1)
	go func() {
		_, err := client.RunPod(n.ctx, n.PodConfig("cut-off"))
		ended <- err
	}()
	n.eventually("the pod's ADD has come to the second plugin", func() bool { return len(n.calls("ADD")) > 0 })
	n.ok(n.KillCrinetd())
	if err := <-ended; err == nil {
		t.Error("the pod came up although crinetd died")
	}
	files, err := filepath.Glob(n.Path("/var/lib/cni/networks/recorded/*.*.*.*"))
	n.ok(err)
	if len(files) != 1 {
		t.Fatalf("addresses of the pod: %q, want one", files)
	}
	n.ok(os.Truncate(files[0], 0)) // as host-local leaves it
	n.setRules()
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.removeAll(client)
	if left := n.leftovers(); len(left) != 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// portPod is a pod with the hostPort 8080.
func (n *testNode) portPod(name string) *runtimeapi.PodSandboxConfig {
	return n.portPodAt(name, 8080)
}

// portPodAt is a pod with a hostPort.
func (n *testNode) portPodAt(name string, port int32) *runtimeapi.PodSandboxConfig {
	config := n.PodConfig(name)
	config.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: port}}
	return config
}

// arm makes crinetd die when it comes to the fail point.
func (n *testNode) arm(point string) {
	n.t.Helper()
	n.ok(n.WriteFile(failpoint.File, point))
}

// recoverFrom sees that crinetd has died at the point, starts it again, removes
// what the runtime has, and looks for what is left.
func (n *testNode) recoverFrom(point string, client *node.Client, flags ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
	defer cancel()
	if err := n.AwaitCrinetdEnd(ctx); err != nil {
		n.t.Fatalf("%s was never reached: %v", point, err)
	}
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), flags...)...))
	n.awaitNetwork(client, true)
	began := time.Now()
	n.removeAll(client)
	if left := n.leftovers(); len(left) != 0 {
		n.t.Errorf("%s: left behind:\n%s", point, strings.Join(left, "\n"))
	}
	n.t.Logf("%-32s clean after %v", point, time.Since(began).Round(time.Millisecond))
}

// removeAll removes all sandboxes, as a kubelet without pods does.
func (n *testNode) removeAll(client *node.Client) {
	n.t.Helper()
	for _, id := range n.sandboxIDs(client) {
		_, stopErr := client.Runtime.StopPodSandbox(n.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		_, removeErr := client.Runtime.RemovePodSandbox(n.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		if err := errors.Join(stopErr, removeErr); err != nil {
			n.t.Errorf("remove sandbox %s: %v", id, err)
		}
	}
}

// leftovers waits until nothing of any pod is left on the node, in the journal and
// in the hostPort table. It returns what is left at the end of its patience, after
// filters have taken out what does not count.
func (n *testNode) leftovers(filters ...func([]string) []string) []string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
	defer cancel()
	for {
		left := n.traces()
		for _, filter := range filters {
			left = filter(left)
		}
		if len(left) == 0 || ctx.Err() != nil {
			return left
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// traces returns what pods have on the node, in the journal and in the hostPort table.
func (n *testNode) traces() []string {
	n.t.Helper()
	found, err := n.Leftovers(n.ctx)
	n.ok(err)
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	for _, state := range states {
		found = append(found, "journal record of "+state.Name+" "+state.SandboxID)
	}
	table, err := n.Run(n.ctx, "nft", "list", "table", "inet", "crinet")
	n.ok(err)
	for line := range strings.Lines(table) {
		if strings.Contains(line, "comment") && strings.Contains(line, "default/") {
			found = append(found, "nft "+strings.TrimSpace(line))
		}
	}
	return found
}

// seesTraces checks that traces finds every kind of thing that a running pod has.
func (n *testNode) seesTraces(client *node.Client) {
	n.t.Helper()
	pod, err := client.RunPod(n.ctx, n.portPod("traced"))
	n.ok(err)
	found := strings.Join(n.traces(), "\n")
	for _, kind := range []string{"sandbox ", "address ", "veth ", "network namespace ", "crinetd result ", "journal record ", "nft "} {
		if !strings.Contains(found, kind) {
			n.t.Errorf("a pod's %sis not found on the node:\n%s", kind, found)
		}
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}
