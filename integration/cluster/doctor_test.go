package cluster_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// examined waits until the doctor finds on a node what check wants to be found.
func (c *testCluster) examined(m *cluster.Member, what string, check func(doctor.Report) error) {
	c.t.Helper()
	c.await("the doctor on "+m.Name+" "+what, func() error {
		out, err := m.Crinetctl(c.ctx, "doctor", "-o", "json")
		var report doctor.Report
		if jsonErr := json.Unmarshal([]byte(out), &report); jsonErr != nil {
			return fmt.Errorf("%w: %w", err, jsonErr)
		}
		return check(report)
	})
}

// isWell is nil for a report without findings.
func isWell(r doctor.Report) error {
	var found []string
	for _, result := range r.Results {
		if result.Failed() || result.Outcome == doctor.Unknown {
			found = append(found, fmt.Sprintf("%s %s: %s", result.Outcome, result.Check, result.Found))
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("it finds: %s", strings.Join(found, "\n"))
	}
	return nil
}

// finds wants a check to have found something that has text in it.
func finds(check, text string) func(doctor.Report) error {
	return func(r doctor.Report) error {
		for _, result := range r.Results {
			if result.Check == check && result.Failed() && strings.Contains(result.Found, text) {
				return nil
			}
		}
		return fmt.Errorf("%s does not find %q: %w", check, text, isWell(r))
	}
}

// on runs a command on a node.
func (c *testCluster) on(m *cluster.Member, line ...string) {
	c.t.Helper()
	_, err := m.Run(c.ctx, line[0], line[1:]...)
	c.ok(err)
}

// Nodes of a real cluster are well, whatever kube-proxy does to their firewalls, and a
// firewall that drops pods' packets is found behind its rules.
func TestDoctorInACluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{Nodes: 2, NoDNS: true, Families: []cluster.Family{cluster.IPv4, cluster.IPv6}})
	c.apply(spread, "web", 8080)
	c.pods("web", 2)
	for _, mode := range []string{"iptables", "nftables"} {
		for _, m := range c.Members {
			if mode != "iptables" {
				c.ok(m.SetProxyMode(c.ctx, mode))
			}
			c.examined(m, "is content with kube-proxy in mode "+mode, isWell)
			c.on(m, "iptables", "-P", "FORWARD", "DROP")
			c.examined(m, "sees the policy", finds("forward-nft", "the policy of chain FORWARD"))
			c.on(m, "iptables", "-P", "FORWARD", "ACCEPT")
			c.examined(m, "is content again", isWell)
		}
	}
}

// With flannel, flanneld's absence is told, its nodes are well, and an MTU without room
// for its tunnel is found.
func TestDoctorWithFlannel(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{Nodes: 2, NoDNS: true, Network: map[string]string{"10-flannel.conflist": flannelConf},
		Prepare: func(n *node.Node) error {
			_, err := n.Run(t.Context(), "ln", "-sf", kit.Tool("cni/flannel"), node.BinDir)
			return err
		}})
	c.apply(spread, "web", 8080)
	m := c.Members[0]
	c.examined(m, "misses flanneld", finds("flannel-subnet", subnetFile))
	c.startFlannel("vxlan", "--kube-subnet-mgr", "--kubeconfig-file="+cluster.Kubeconfig, "--net-config-path="+flannelFile)
	c.pods("web", 2)
	c.examined(m, "is content", isWell)
	c.on(m, "ip", "link", "set", "cni0", "mtu", "1500")
	c.examined(m, "sees the MTU", finds("mtu", "tunnel flannel.1 has 1450"))
	c.on(m, "ip", "link", "set", "cni0", "mtu", "1450")
	c.examined(m, "is content again", isWell)
}
