package integration_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// smallNetwork has five addresses for pods.
const smallNetwork = `{"cniVersion": "1.0.0", "name": "small", "plugins": [{"type": "bridge", "bridge": "small0",
	"isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.57.0.0/29"}}]}`

// addressesAre waits until crinetctl status and the metrics have counted so many
// addresses of smallNetwork.
func (n *testNode) addressesAre(used, free, leaked int) {
	n.t.Helper()
	line := fmt.Sprintf("%d used, %d free, %d leaked of 5", used, free, leaked)
	for deadline := time.Now().Add(cleanTimeout); ; time.Sleep(100 * time.Millisecond) {
		out, err := n.Crinetctl(n.ctx, "status")
		n.ok(err)
		if strings.Contains(out, line) {
			break
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("crinetctl status does not say %q:\n%s", line, out)
		}
	}
	for state, want := range map[string]int{"used": used, "free": free, "leaked": leaked, "reserved": 3} {
		name := fmt.Sprintf(`crinet_ipam_addresses{network="small",range="10.57.0.0/29",state=%q}`, state)
		if got, err := n.Metric(n.ctx, name); err != nil || got != float64(want) {
			n.t.Errorf("%s is %v, %v; want %d", name, got, err, want)
		}
	}
}

// A network of five addresses fills up: the operator is warned while there are some
// left, and told by name when there are none. An address that nobody will free is
// named with its file. NetworkReady stays true all the time, since it is not for a
// node to say that it is full.
func TestAddressesRunOut(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-small.conflist", smallNetwork, cniFlags...)
	n.awaitNetwork(client, true)
	n.addressesAre(0, 5, 0)
	message := func() string { return n.awaitNetwork(client, true) }
	if said := message(); strings.Contains(said, "addresses") {
		t.Errorf("NetworkReady says %q while all addresses are free", said)
	}
	var pods []*node.Pod
	for i := range 3 {
		pods = append(pods, n.runPod(client, fmt.Sprintf("pod-%d", i)))
	}
	n.addressesAre(3, 2, 0)
	if said := message(); !strings.Contains(said, `network "small" has 2 of 5 addresses left in 10.57.0.0/29`) {
		t.Errorf("NetworkReady says %q with two addresses left", said)
	}
	pods = append(pods, n.runPod(client, "pod-3"))

	// What an earlier runtime left, with an id that is written for a terminal.
	address := n.freeAddress(pods)
	file := "/var/lib/cni/networks/small/" + address
	n.sh(`printf 'gone\033[31m\r\neth0' > %[1]s; touch -d '1 hour ago' %[1]s`, file)
	n.addressesAre(4, 0, 1)
	if said := message(); !strings.Contains(said, `no addresses: network "small" has given out all 5 of 10.57.0.0/29, 1 of them leaked`) {
		t.Errorf("NetworkReady says %q without an address", said)
	}
	out, err := n.Crinetctl(n.ctx, "status")
	n.ok(err)
	for _, want := range []string{"Leaked:", `"gone\x1b[31m"`, file} {
		if !strings.Contains(out, want) || strings.Contains(out, "\x1b") {
			t.Errorf("crinetctl status does not say %q, or says it raw:\n%s", want, out)
		}
	}
	if _, err := client.RunPod(n.ctx, n.PodConfig("too-many")); err == nil {
		t.Error("a sixth pod got an address")
	}
	n.sh("rm %s", file)
	n.addressesAre(4, 1, 0)
	for _, pod := range pods {
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.addressesAre(0, 5, 0)
	if said := message(); strings.Contains(said, "addresses") {
		t.Errorf("NetworkReady says %q while all addresses are free again", said)
	}
	log, err := n.Log("crinetd")
	n.ok(err)
	for _, text := range []string{"addresses run out", "new pods get no address", "there are enough addresses again"} {
		if got := strings.Count(log, text); got == 0 || got > 2 {
			t.Errorf("crinetd logged %q %d times", text, got)
		}
	}
	n.noLeftovers()
}

// freeAddress is an address of smallNetwork that none of the pods has.
func (n *testNode) freeAddress(pods []*node.Pod) string {
	n.t.Helper()
	taken := make(map[string]bool)
	for _, pod := range pods {
		taken[n.address(pod)] = true
	}
	for i := 2; i <= 6; i++ {
		if a := fmt.Sprintf("10.57.0.%d", i); !taken[a] {
			return a
		}
	}
	n.t.Fatal("no address is free")
	return ""
}
