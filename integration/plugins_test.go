package integration_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// wrap installs a shell script as the plugin wrapper: it answers VERSION as told,
// and has bridge do everything else.
func (n *testNode) wrap(version string) {
	n.t.Helper()
	n.ok(n.WriteFile(node.BinDir+"/wrapper", "#!/bin/sh\n[ \"$CNI_COMMAND\" != VERSION ] || { "+version+" }\nexec "+node.BinDir+"/bridge\n"))
	n.sh("chmod +x %s/wrapper", node.BinDir)
}

// wrapped is a network of the plugin wrapper.
func wrapped(cniVersion string) string {
	return strings.NewReplacer(`"type": "bridge"`, `"type": "wrapper"`, "0.3.0", cniVersion).Replace(seedBridge)
}

// startWith starts containerd and crinetd with a conf file.
func (n *testNode) startWith(file, conf string) *node.Client {
	n.t.Helper()
	n.ok(n.WriteConf(file, conf))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	return n.client(node.CrinetdSocket)
}

// Review row A15: of what a bin dir holds, only plugins that a configuration names
// are run; a kubelet or a bootstrap script beside them is not.
func TestOnlyNamedPluginsAreRun(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteFile(node.BinDir+"/bootstrap", "#!/bin/sh\ntouch /run/was-run\n"))
	n.sh("chmod +x %s/bootstrap", node.BinDir)
	client := n.startWith("10-mynet.conf", seedBridge)
	n.worksAgain(client, "named")
	n.sh("test ! -e /run/was-run")
	out, err := n.Crinetctl(n.ctx, "probe")
	n.ok(err)
	if !strings.Contains(out, "bootstrap") {
		t.Errorf("crinetctl probe does not list the script:\n%s", out)
	}
	n.ok(n.WriteConf("10-mynet.conf", strings.Replace(seedBridge, `"bridge"`, `"bootstrap"`, 1)))
	n.notReady(client, "bootstrap")
	n.sh("test -e /run/was-run") // that it would have been seen
}

// Review row A16: a plugin that is killed when it is asked for its version is
// asked again, without anybody touching a file.
func TestKilledProbeIsAskedAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.wrap(`[ -e /run/second ] || { touch /run/second; kill -9 $$; };`)
	client := n.startWith("10-wrapped.conf", wrapped("0.3.0"))
	n.worksAgain(client, "second-answer")
	n.sh("test -e /run/second")
}

// Review row A17: to libcni a plugin that does not know VERSION speaks 0.1.0.
func TestPluginThatDoesNotKnowVersion(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.wrap(`echo '{"code": 4, "msg": "unknown CNI_COMMAND: VERSION"}'; exit 1;`)
	client := n.startWith("10-wrapped.conf", wrapped("0.1.0"))
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "old")
	if addr := netip.MustParseAddr(n.address(pod)); !netip.MustParsePrefix(seedSubnet).Contains(addr) {
		t.Errorf("the pod has the address %s, want one in %s", addr, seedSubnet)
	}
	n.reachable(pod)
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}

// Review row A18: a plugin may take a private name for its IPAM: that there is no
// such binary is worth a word, and not a refusal.
func TestPrivateIPAMType(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	client := n.startWith("10-plain.conflist", strings.Replace(addressOnly, `"addresses"`, `"ipam": {"type": "azure-cns"}, "addresses"`, 1))
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "private")
	if addr := n.address(pod); addr != "10.70.0.9" {
		t.Errorf("the pod has the address %s, want the plugin's", addr)
	}
	status, err := json.Marshal(n.status())
	n.ok(err)
	if !strings.Contains(string(status), "azure-cns") {
		t.Errorf("crinetctl status does not name the IPAM plugin that is missing: %s", status)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}

// Review row A25: the hostPorts of a macvlan pod cannot answer on its own node:
// the kernel keeps the two apart. The log and crinetctl pods say so.
func TestHostPortOfMacvlanPod(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	client := n.startWith("10-lan.conflist", `{"cniVersion": "1.0.0", "name": "lan", "plugins": [
	{"type": "macvlan", "master": "`+node.Uplink+`", "mode": "bridge",
	 "ipam": {"type": "static", "addresses": [{"address": "198.51.100.77/24"}]}}]}`)
	n.awaitNetwork(client, true)
	pod, err := client.RunPod(n.ctx, n.portPod("lan"))
	n.ok(err)
	n.awaitOK(answerTimeout, func() error {
		out, err := n.Crinetctl(n.ctx, "pods")
		if err == nil && !strings.Contains(out, "macvlan") {
			err = fmt.Errorf("crinetctl pods does not say that the hostPort cannot answer:\n%s", out)
		}
		return err
	})
	log, err := n.Log("crinetd")
	n.ok(err)
	if !strings.Contains(log, "macvlan") {
		t.Error("crinetd's log does not say that the hostPort cannot answer")
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}
