package integration_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// What crinetctl says on a node; validate says it without crinetd as well.
func TestCrinetctl(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.WriteConf("20-broken.conflist", "{\n  \"name\": \"a\",\n  \"plugins\": [,]\n}"))
	n.ok(n.WriteFile("/run/more/bridge", "#!/bin/sh\n"))
	n.sh("chmod +x /run/more/bridge")
	const place = node.ConfDir + "/20-broken.conflist:3:15: is broken"
	_, err := n.Crinetctl(n.ctx, "validate", node.ConfDir+"/10-mynet.conf", node.ConfDir+"/20-broken.conflist")
	if err == nil || !strings.Contains(err.Error(), "exit status 1") || !strings.Contains(err.Error(), place) {
		t.Errorf("crinetctl validate without crinetd: %v, want exit code 1 and %q", err, place)
	}
	if _, err := n.Crinetctl(n.ctx, "status"); err == nil || !strings.Contains(err.Error(), node.AdminSocket) {
		t.Errorf("crinetctl status without crinetd: %v, want it to name %s", err, node.AdminSocket)
	}
	n.ok(n.StartCrinetd(n.ctx, slices.Concat([]string{"--cni-bin-dir=" + node.BinDir + ",/run/more"}, runtimeFlags, cniFlags)...))
	n.awaitLive("the seed's bridge", "mynet", cleanTimeout)
	for _, c := range []struct {
		args string
		want []string
	}{
		{"status", []string{"mynet (/etc/cni/net.d/10-mynet.conf)", "the first usable network in " + node.ConfDir, node.ConfDir + "/20-broken.conflist:3:15", "RELOAD"}},
		{"status -o json", []string{`"network": "mynet"`, `"line": 3`, `"reloads": [`}},
		{"probe", []string{node.BinDir + "/host-local", "shadows /run/more/bridge", "1.0.0,1.1.0"}},
		{"probe -o json", []string{`"/run/more/bridge"`}},
		{"validate " + node.ConfDir + "/10-mynet.conf", []string{"mynet", "0.3.0", "bridge"}},
		{"pods", []string{"NAMESPACE"}},
	} {
		out, err := n.Crinetctl(n.ctx, strings.Fields(c.args)...)
		n.ok(err)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("crinetctl %s does not say %q:\n%s", c.args, want, out)
			}
		}
	}
	for name, least := range map[string]float64{"crinet_config_scans_total": 1, "crinet_config_reloads_total": 1, "crinet_config_problems": 1} {
		n.metricAtLeast(name, least)
	}
}

// metricAtLeast fails the test for a metric that is less.
func (n *testNode) metricAtLeast(name string, least float64) {
	n.t.Helper()
	value, err := n.Metric(n.ctx, name)
	n.ok(err)
	if value < least {
		n.t.Errorf("%s is %v, want at least %v", name, value, least)
	}
}

// A STATUS that fails is seen in the metrics as well.
func TestStatusMetrics(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf("10-stat.conflist", statusNetwork))
	n.statusDoes(script.Rule{Verb: "STATUS", Do: script.Fail, Code: 50, Text: "the agent is away"})
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitReport("a failing STATUS", "the agent is away")
	n.metricAtLeast("crinet_network_status_total", 1)
	n.metricAtLeast("crinet_network_status_failed_total", 1)
	if ready, err := n.Metric(n.ctx, "crinet_network_ready"); err != nil || ready != 0 {
		t.Errorf("crinet_network_ready is %v, %v", ready, err)
	}
}
