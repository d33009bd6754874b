package integration_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// portmapBridge is a chain that can map hostPorts itself.
const portmapBridge = `{"cniVersion": "1.0.0", "name": "portmapped", "plugins": [
	{"type": "bridge", "bridge": "portmapped0", "isDefaultGateway": true, "hairpinMode": true,
	 "ipam": {"type": "host-local", "subnet": "10.60.0.0/16"}},
	{"type": "portmap", "capabilities": {"portMappings": true}}]}`

// restart ends crinetd and starts it with other flags.
func (n *testNode) restart(client *node.Client, flags ...string) {
	n.t.Helper()
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, flags...))
	n.awaitNetwork(client, true)
}

// portmapRules are the rules for a port that the portmap plugin has made.
func (n *testNode) portmapRules(port string) string {
	n.t.Helper()
	rules, err := n.Run(n.ctx, "nft", "list", "ruleset")
	n.ok(err)
	var found []string
	for line := range strings.Lines(rules) {
		if strings.Contains(line, "dport "+port+" ") && !strings.Contains(n.table(), line) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// The test sets each value of --hostport on one node, one after the other. It
// checks who maps, and that nothing of the mode before is left. Pods are removed in
// another mode than they were made in.
func TestHostPortModes(t *testing.T) {
	t.Parallel()
	mode := func(value string) []string { return append(slices.Clone(cniFlags), "--hostport="+value) }
	n, client := newNodeWith(t, "10-portmapped.conflist", portmapBridge, cniFlags...)
	n.awaitNetwork(client, true)

	// The default: crinetd maps, and the chain's plugin does not.
	managed := n.servePod(client, "managed", bothPorts("", 8080)...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "managed")
	if table := n.table(); !strings.Contains(table, "default/managed") {
		t.Errorf("the table does not name the pod:\n%s", table)
	}
	if rules := n.portmapRules("8080"); rules != "" {
		t.Errorf("the portmap plugin has mapped the port as well:\n%s", rules)
	}

	n.restart(client, mode("plugin")...)
	n.noTable("--hostport=plugin")
	n.silent(n.Outside, node.NodeIPv4, 8080)
	plugged := n.servePod(client, "plugged", bothPorts("", 8081)...)
	n.answers(n.Outside, node.NodeIPv4, 8081, "plugged")
	if rules := n.portmapRules("8081"); rules == "" {
		t.Error("the portmap plugin has mapped nothing")
	}
	n.noTable("--hostport=plugin")
	n.ok(managed.StopAndRemove(n.ctx))

	n.restart(client, mode("manager")...)
	again := n.servePod(client, "again", bothPorts("", 8080)...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "again")

	n.restart(client, mode("off")...)
	n.noTable("--hostport=off")
	off := n.servePod(client, "off", bothPorts("", 8082)...)
	n.silent(n.Outside, node.NodeIPv4, 8080)
	n.silent(n.Outside, node.NodeIPv4, 8082)
	n.ok(plugged.StopAndRemove(n.ctx))
	if rules := n.portmapRules("8081"); rules != "" {
		t.Errorf("the portmap plugin's rules are left behind:\n%s", rules)
	}

	// When crinetd maps again, the pods that are there have their mappings again.
	n.restart(client, mode("manager")...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "again")
	n.ok(off.StopAndRemove(n.ctx))
	n.ok(again.StopAndRemove(n.ctx))
	n.noMappings()

	// Under noop the runtime maps, through the same chain.
	n.restart(client, "--network-plugin=noop")
	n.noTable("--network-plugin=noop")
	noop := n.servePod(client, "noop", bothPorts("", 8083)...)
	n.answers(n.Outside, node.NodeIPv4, 8083, "noop")
	n.noTable("--network-plugin=noop")
	n.ok(noop.StopAndRemove(n.ctx))
	n.noLeftovers()
}

func (n *testNode) noTable(circumstance string) {
	n.t.Helper()
	if table := n.table(); table != "" {
		n.t.Errorf("%s: there is a table:\n%s", circumstance, table)
	}
}

// A pod that is run at containerd's own socket has its hostPorts, or is refused
// when another has them.
func TestHostPortAtContainerdDirectly(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	direct := n.client(node.ContainerdSocket)
	pod := n.servePod(direct, "direct", bothPorts("", 8080)...)
	n.answers(n.Outside, node.NodeIPv4, 8080, "direct")
	n.answers(n.Place, "127.0.0.1", 8080, "direct")
	n.refused(client, n.withPorts("refused-hooked", bothPorts("", 8080)...), "default/direct")
	_, err := direct.RunPod(n.ctx, n.withPorts("second", bothPorts("", 8080)...))
	if err == nil || !strings.Contains(err.Error(), "default/direct") {
		t.Errorf("containerd answers %v for a port that is taken, want an error that names the pod", err)
	}
	n.answers(n.Outside, node.NodeIPv4, 8080, "direct")
	n.ok(pod.StopAndRemove(n.ctx))
	n.noMappings()
	n.noLeftovers()
}

// plainBridge needs nothing of netfilter.
const plainBridge = `{"cniVersion": "1.0.0", "name": "plain", "plugins": [
	{"type": "bridge", "bridge": "plain0", "isDefaultGateway": true,
	 "ipam": {"type": "host-local", "subnet": "10.70.0.0/16"}}]}`

// addressOnly gives pods an address and no device, for which it needs no rights.
const addressOnly = `{"cniVersion": "1.0.0", "name": "plain", "plugins": [
	{"type": "testplugin", "dir": "` + scriptDir + `", "addresses": ["10.70.0.9/16"]}]}`

// On a node that cannot map hostPorts, pods that want some are refused with the
// reason, and all other pods run.
func TestNoHostPortsOnThisNode(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(kit.Build(n.ctx, []string{"CGO_ENABLED=0"}, nil, "integration/nonetfilter"))
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.StartContainerd(n.ctx))
	client := n.client(node.CrinetdSocket)
	for _, c := range []struct {
		lacks, conf, reason string
		start               []string
	}{
		{"nftables", plainBridge, "protocol not supported", []string{kit.Program("nonetfilter")}},
		{"CAP_NET_ADMIN", addressOnly, "operation not permitted",
			[]string{"setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"}},
	} {
		t.Run("without "+c.lacks, func(t *testing.T) {
			n := &testNode{Node: n.Node, t: t, ctx: n.ctx}
			n.ok(n.WriteConf("10-plain.conflist", c.conf))
			n.ok(n.StartCrinetdBy(n.ctx, c.start, cniFlags...))
			n.awaitNetwork(client, true)
			name := "refused-" + strings.ToLower(c.lacks)
			n.refused(client, n.withPorts(name, bothPorts("", 8080)...), "default/"+name, "hostPorts can't be mapped on this node", c.reason)
			// The operator learns it before a pod is refused (review row B15).
			if said := n.status().HostPorts; said == nil || !strings.Contains(said.Unavailable, c.reason) {
				t.Errorf("crinetctl status says of hostPorts: %+v", said)
			}
			if available, err := n.Metric(n.ctx, "crinet_hostport_available"); err != nil || available != 0 {
				t.Errorf("crinet_hostport_available is %v, %v, want 0", available, err)
			}
			pod, err := client.RunPod(n.ctx, n.withPorts("runs", hostPort(tcp, "", 0, 80)))
			n.ok(err)
			if c.conf == plainBridge {
				n.serveIn(pod, ":80", ":53")
				page, err := n.Get(n.ctx, "http://"+n.address(pod)+"/")
				if err != nil || !strings.HasPrefix(page, "runs ") {
					t.Errorf("the pod answers %q: %v", page, err)
				}
			}
			n.ok(pod.StopAndRemove(n.ctx))
			n.noTable(c.lacks)
			n.noLeftovers()
			n.ok(n.StopCrinetd())
		})
	}
}
