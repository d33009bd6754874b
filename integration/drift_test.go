package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/runtime/admin"
)

// driftNamed is how long drift may go unnoticed: by interval on a machine that is busy.
const driftNamed = 10 * time.Second

// newDriftNode starts a node with a bridge that crinetd makes itself, and flags.
func newDriftNode(t *testing.T, flags ...string) (*testNode, *node.Client) {
	t.Helper()
	n := newNode(t)
	n.ok(n.WriteConf("10-drift.conflist", `{"cniVersion": "1.0.0", "name": "drift", "plugins": [`+otherNetworks[0].plugins+`]}`))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), flags...)...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	return n, client
}

// podViews are the pods as crinetctl pods shows them, by name.
func (n *testNode) podViews() map[string]admin.Pod {
	n.t.Helper()
	text, err := n.Crinetctl(n.ctx, "pods", "-o", "json")
	n.ok(err)
	var all []admin.Pod
	n.ok(json.Unmarshal([]byte(text), &all))
	views := make(map[string]admin.Pod)
	for _, pod := range all {
		views[pod.Name] = pod
	}
	return views
}

// inPod runs a command of ip(8) in a pod's namespace.
func (n *testNode) inPod(pod, command string) {
	n.t.Helper()
	n.sh("nsenter --net=%s ip %s", n.podViews()[pod].NetNS, command)
}

// drifts waits until a pod's drift is named everywhere with these words.
func (n *testNode) drifts(pod string, words ...string) {
	n.t.Helper()
	began := time.Now()
	n.awaitOK(driftNamed, func() error {
		said := n.podViews()[pod].Drift
		for _, word := range words {
			if !strings.Contains(said, word) {
				return fmt.Errorf("crinetctl pods says of %s: %q, want %q", pod, said, word)
			}
		}
		return nil
	})
	n.t.Logf("named after %v", time.Since(began).Round(10*time.Millisecond))
	value, err := n.Metric(n.ctx, "crinet_pods_drifted")
	n.ok(err)
	status, err := n.Crinetctl(n.ctx, "status")
	n.ok(err)
	table, err := n.Crinetctl(n.ctx, "pods")
	n.ok(err)
	log, err := n.Log("crinetd")
	n.ok(err)
	if value < 1 || !strings.Contains(status, " not as made: ") || !strings.Contains(status, "default/"+pod) || !strings.Contains(table, "default/"+pod+": not as it was made, noticed ") ||
		!strings.Contains(log, "a pod's network is not as it was made") {
		n.t.Errorf("crinet_pods_drifted is %v; %s\n%s", value, status, table)
	}
	n.t.Logf("%s\n%s", status, table)
	n.why(pod, 1, "does NOT STAND", "crinetd noticed ")
}

// noDrift waits until no pod is drifted any more.
func (n *testNode) noDrift() {
	n.t.Helper()
	n.awaitOK(driftNamed, func() error {
		value, err := n.Metric(n.ctx, "crinet_pods_drifted")
		if err == nil && value != 0 {
			err = fmt.Errorf("%v pods are drifted", value)
		}
		return err
	})
}

// Drift is told everywhere, and so is its end; by default nothing is changed.
func TestDriftIsTold(t *testing.T) {
	t.Parallel()
	n, client := newDriftNode(t)
	pod, other := n.runPod(client, "one"), n.runPod(client, "other")
	n.inPod("one", "link del eth0")
	n.drifts("one", "interface: want eth0")
	n.sh("ip address del 10.31.0.1/16 dev dual0")
	n.drifts("other", "the gateway's address 10.31.0.1 on dual0")
	n.sh("ip address add 10.31.0.1/16 dev dual0")
	n.awaitOK(driftNamed, func() error {
		if said := n.podViews()["other"].Drift; said != "" {
			return errors.New(said)
		}
		return nil
	})
	n.why("other", 0, "its network stands", "It was not as it was made")
	if state := n.sandboxState(client, pod.ID); state != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the sandbox is %v, want it as the runtime has it", state)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.ok(other.StopAndRemove(n.ctx))
	n.noDrift()
	n.clean()
}

func (n *testNode) sandboxState(client *node.Client, id string) runtimeapi.PodSandboxState {
	n.t.Helper()
	answer, err := client.Runtime.PodSandboxStatus(n.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	n.ok(err)
	return answer.GetStatus().GetState()
}

// With repair crinetd sets again what it had set, also over a restart; a pod of a plugin
// that was executed is told of only.
func TestDriftIsRepaired(t *testing.T) {
	t.Parallel()
	n, client := newDriftNode(t, "--drift=repair", "--drift-interval=1s")
	pod := n.runPod(client, "one")
	for _, command := range []string{
		"ip link set $(ls /sys/class/net/dual0/brif) type bridge_slave hairpin off",
		"ip link set $(ls /sys/class/net/dual0/brif) nomaster",
		"ip link set $(ls /sys/class/net/dual0/brif) down",
		"nsenter --net=NS ip -4 address flush dev eth0",
		"nsenter --net=NS ip route del default",
		"nsenter --net=NS ip link set eth0 down",
		"ip address del 10.31.0.1/16 dev dual0",
	} {
		n.sh("%s", strings.ReplaceAll(command, "NS", n.podViews()["one"].NetNS))
		n.awaitOK(driftNamed, func() error {
			_, err := n.Crinetctl(n.ctx, "why", "one")
			return err
		})
	}
	n.noDrift()
	if repairs, err := n.Metrics(n.ctx); err != nil || !strings.Contains(repairs, `crinet_drift_repairs_total{part="address"}`) {
		t.Errorf("no repair of an address was counted: %v", err)
	}
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append(slices.Clone(cniFlags), "--builtin-plugins=off", "--drift=repair", "--drift-interval=1s")...))
	n.awaitNetwork(client, true)
	executed := n.runPod(client, "executed")
	n.inPod("executed", "route del default")
	n.inPod("one", "route del default")
	n.drifts("executed", "the default route")
	n.awaitOK(driftNamed, func() error {
		if said := n.podViews()["one"].Drift; said != "" {
			return errors.New(said)
		}
		return nil
	})
	n.why("one", 0)
	n.ok(pod.StopAndRemove(n.ctx))
	n.ok(executed.StopAndRemove(n.ctx))
	n.clean()
}

// With recreate the sandbox that cannot be repaired turns not ready, and no more of them
// than the limit allows; the runtime's own answers stay as they are.
func TestDriftIsMadeAnew(t *testing.T) {
	t.Parallel()
	n, client := newDriftNode(t, "--drift=recreate", "--drift-interval=1s")
	direct := n.client(node.ContainerdSocket)
	first, second, third := n.runPod(client, "first"), n.runPod(client, "second"), n.runPod(client, "third")
	n.inPod("third", "route del default")
	n.inPod("first", "link del eth0")
	n.awaitOK(driftNamed, func() error {
		if state := n.sandboxState(client, first.ID); state != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			return fmt.Errorf("the sandbox is %v", state)
		}
		return nil
	})
	n.inPod("second", "link del eth0")
	n.drifts("second", "interface: want eth0")
	list, err := client.Runtime.ListPodSandbox(n.ctx, &runtimeapi.ListPodSandboxRequest{})
	n.ok(err)
	for _, sandbox := range list.GetItems() {
		if gone := sandbox.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY; gone != (sandbox.GetId() == first.ID) {
			t.Errorf("sandbox %s is listed as %v", sandbox.GetMetadata().GetName(), sandbox.GetState())
		}
	}
	for _, pod := range []*node.Pod{second, third} {
		if state := n.sandboxState(client, pod.ID); state != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("sandbox %s is %v, want it ready", pod.Config.GetMetadata().GetName(), state)
		}
	}
	if state := n.sandboxState(direct, first.ID); state != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("at the runtime the sandbox is %v", state)
	}
	if value, err := n.Metric(n.ctx, "crinet_drift_recreations_total"); err != nil || value != 1 {
		t.Errorf("%v sandboxes were made anew, %v; want 1", value, err)
	}
	n.why("third", 0)
	for _, pod := range []*node.Pod{first, second, third} {
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.clean()
}

// aDayOf says how often a pod is looked at in a day, and how often its CHECK runs, where
// crinetd is not told otherwise.
var aDayOf = struct{ looks, checks float64 }{looks: float64(24 * time.Hour / (5 * time.Second)), checks: float64(24 * time.Hour / (10 * time.Minute))}

// Pods that live are looked at more often than usual, on networks of all kinds, built in
// and executed, while others come and go, the configuration changes, and crinetd starts
// again: nothing is ever told of them. SOAK says for how long.
func TestDriftIsNeverToldInVain(t *testing.T) {
	t.Parallel()
	for _, builtins := range []string{"auto", "off"} {
		t.Run(builtins, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.ok(n.WriteConf("10-first.conflist", plain("first")))
			n.ok(n.StartContainerd(n.ctx))
			flags := append(slices.Clone(cniFlags), "--builtin-plugins="+builtins, "--drift=recreate", "--drift-interval=100ms", "--drift-check-interval=1s")
			n.ok(n.StartCrinetd(n.ctx, flags...))
			client := n.client(node.CrinetdSocket)
			var living []*node.Pod
			for i, c := range otherNetworks {
				n.useNetwork(client, c)
				pod, err := client.RunPod(n.ctx, n.portPodAt("living-"+c.name, 8100+int32(i)))
				n.ok(err)
				living = append(living, pod)
				if c.name == "lan" {
					continue // it has one address
				}
				n.ok(n.runPod(client, "guest").StopAndRemove(n.ctx))
			}
			n.ok(n.StopCrinetd())
			n.ok(n.StartCrinetd(n.ctx, flags...))
			n.awaitNetwork(client, true)
			n.watchForDrift(client, float64(len(living)))
			for _, pod := range living {
				if state := n.sandboxState(client, pod.ID); state != runtimeapi.PodSandboxState_SANDBOX_READY {
					t.Errorf("sandbox %s is %v", pod.Config.GetMetadata().GetName(), state)
				}
				n.ok(pod.StopAndRemove(n.ctx))
			}
			n.clean()
		})
	}
}

// watchForDrift has pods come and go until crinetd has looked often enough at those that
// stay, so many, and checks that it told of no drift.
func (n *testNode) watchForDrift(client *node.Client, pods float64) {
	n.t.Helper()
	const enough, atLeast = 1000, 150 // looks, and where the machine is too busy for so many
	end := time.Now().Add(soak(n.t, time.Minute))
	done := func(looks, checks float64) bool {
		if os.Getenv("SOAK") == "" && looks >= enough && checks >= pods {
			return true
		}
		return time.Now().After(end) && looks >= atLeast && checks >= pods
	}
	var looks, checks float64
	for i := 0; !done(looks, checks); i++ {
		n.ok(n.runPod(client, fmt.Sprint("guest-", i)).StopAndRemove(n.ctx))
		var err error
		looks, err = n.Metric(n.ctx, "crinet_drift_looks_total")
		n.ok(err)
		checks, err = n.Metric(n.ctx, "crinet_drift_checks_total")
		n.ok(err)
	}
	n.t.Logf("%.0f looks and %.0f CHECKs of %.0f pods: as in %.2f and %.2f days", looks, checks, pods, looks/pods/aDayOf.looks, checks/pods/aDayOf.checks)
	log, err := n.Log("crinetd")
	n.ok(err)
	if strings.Contains(log, "is not as it was made") {
		n.t.Error("drift was told in vain")
	}
}
