package integration_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// TestUnitCapabilities runs crinetd with no more rights than its unit leaves it: a pod
// with hostPorts comes up, answers and goes, and a port that a process of the node holds
// is refused.
func TestUnitCapabilities(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(kit.Root(), "packaging/systemd/crinetd.service"))
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, m := range regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindAllStringSubmatch(string(text), -1) {
		for name := range strings.FieldsSeq(m[1]) {
			kept = append(kept, strings.ToLower(strings.TrimPrefix(name, "CAP_")))
		}
	}
	if len(kept) < 5 || !slices.Contains(kept, "net_admin") {
		t.Fatalf("the unit keeps %q", kept)
	}
	n := newNode(t)
	known, err := n.Run(n.ctx, "setpriv", "--list-caps")
	n.ok(err)
	var dropped []string
	for name := range strings.FieldsSeq(known) {
		if !slices.Contains(kept, name) {
			dropped = append(dropped, "-"+name)
		}
	}
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetdBy(n.ctx, []string{"setpriv", "--no-new-privs", "--bounding-set", strings.Join(dropped, ",")}, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	pod := n.servePod(client, "pod", bothPorts("", 9000)...)
	n.answers(n.Outside, node.NodeIPv4, 9000, "pod")
	listener, err := n.Listen("tcp", "0.0.0.0:9001")
	n.ok(err)
	defer listener.Close()
	if _, err := client.RunPod(n.ctx, n.withPorts("refused", bothPorts("", 9001)...)); err == nil || !strings.Contains(err.Error(), "9001") {
		t.Errorf("a port that a process holds: %v", err)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}
