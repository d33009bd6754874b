package integration_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// capable is a chain whose test plugin declares bandwidth and dns, and not
// ipRanges; its bridge plugin declares nothing.
const capable = `{"cniVersion": "1.0.0", "name": "capable", "plugins": [
	{"type": "bridge", "bridge": "capable0", "isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "10.52.0.0/16"}},
	{"type": "bandwidth", "capabilities": {"bandwidth": true}},
	{"type": "testplugin", "mtu": 9000, "dir": "/run/record-capable", "capabilities": {"bandwidth": true, "dns": true, "ipRanges": false}}]}`

// What a pod asks for reaches the plugins that declare it, in the form of CNI's
// conventions, and takes effect in the kernel; so does --network-plugin-mtu.
func TestCapabilitiesReachThePlugins(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-capable.conflist", capable))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--network-plugin-mtu=1400", "--pod-cidr=10.99.0.0/16"}, cniFlags...)...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	config := n.PodConfig("capable")
	config.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "16M"}
	config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"svc.cluster.local"}, Options: []string{"ndots:5"}}
	pod, err := client.RunPod(n.ctx, config)
	n.ok(err)
	n.checkAddresses(pod, "10.52.0.0/16")

	if got := n.podLink(pod).MTU; got != 1400 {
		t.Errorf("the pod's MTU is %d, want --network-plugin-mtu", got)
	}
	var bridge []link
	n.ok(json.Unmarshal([]byte(n.sh("ip -json link show capable0")), &bridge))
	if bridge[0].MTU != 1400 {
		t.Errorf("the bridge's MTU is %d, want --network-plugin-mtu", bridge[0].MTU)
	}
	// The node's end of the veth limits traffic to the pod, an ifb device traffic
	// from it.
	qdiscs := n.sh("tc qdisc show")
	for _, want := range []string{"tbf 1: dev veth", "rate 8Mbit", "rate 16Mbit"} {
		if !strings.Contains(qdiscs, want) {
			t.Errorf("the node's qdiscs lack %q:\n%s", want, qdiscs)
		}
	}

	adds := n.recorded("capable", "ADD")
	if len(adds) != 1 {
		t.Fatalf("%d calls of ADD", len(adds))
	}
	var conf struct {
		MTU           int            `json:"mtu"`
		RuntimeConfig map[string]any `json:"runtimeConfig"`
	}
	n.ok(json.Unmarshal(adds[0].Config, &conf))
	if conf.MTU != 9000 {
		t.Errorf("a plugin's own mtu became %d", conf.MTU)
	}
	const most = float64(1<<32 - 1) // the burst that containerd asks for
	want := map[string]any{
		"bandwidth": map[string]any{"ingressRate": 8e6, "ingressBurst": most, "egressRate": 16e6, "egressBurst": most},
		"dns": map[string]any{
			"servers": []any{"192.0.2.53"}, "searches": []any{"svc.cluster.local"}, "options": []any{"ndots:5"},
		},
	}
	if diff := cmp.Diff(want, conf.RuntimeConfig); diff != "" {
		t.Errorf("runtimeConfig of a plugin that declares bandwidth and dns (-want +got):\n%s", diff)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	if left := n.sh("ip -oneline link show type ifb; tc qdisc show | grep tbf || true"); left != "" {
		t.Errorf("left of the bandwidth limits: %s", left)
	}
	// DEL gets the capability args of ADD.
	var last struct {
		RuntimeConfig map[string]any `json:"runtimeConfig"`
	}
	dels := n.recorded("capable", "DEL")
	if len(dels) == 0 {
		t.Fatal("no DEL was recorded")
	}
	n.ok(json.Unmarshal(dels[0].Config, &last))
	if diff := cmp.Diff(want, last.RuntimeConfig); diff != "" {
		t.Errorf("runtimeConfig of DEL (-want +got):\n%s", diff)
	}
	n.noLeftovers()
}
