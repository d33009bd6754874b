package cluster_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// flannelConf is flannel's configuration as its manifest ships it.
const flannelConf = `{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
`

// flannelNet is flanneld's, by the name of its backend. The controller manager gives
// out the first subnet, which flanneld would not.
const flannelNet = `{"Network": "10.244.0.0/16", "SubnetMin": "10.244.0.0", "Backend": {"Type": "%s"}}`

const (
	flannelKey  = "/coreos.com/network/config"
	flannelFile = "/etc/kube-flannel/net-conf.json"
	subnetFile  = "/run/flannel/subnet.env"
)

// flannelDevice is the device of each backend; udp's is a TUN device.
var flannelDevice = map[string]string{"vxlan": "flannel.1", "udp": "flannel0"}

// spread is a pod on each node, with a hostPort.
const spread = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: ` + node.TestImage + `
        imagePullPolicy: IfNotPresent
        ports:
        - {containerPort: 80, hostPort: %[2]d, name: tcp}
        - {containerPort: 80, hostPort: %[2]d, name: udp, protocol: UDP}
`

// Two nodes with flanneld and flannel's plugin: pods reach each other with their
// own addresses, whatever the backend and wherever the subnets are kept. Pods wait
// for flanneld, and outlive it.
func TestFlannel(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{Nodes: 2, NoDNS: true, Network: map[string]string{"10-flannel.conflist": flannelConf},
		Prepare: func(n *node.Node) error {
			_, err := n.Run(t.Context(), "ln", "-sf", kit.Tool("cni/flannel"), node.BinDir)
			return err
		}})
	// The nodes are ready, as flannel's plugin says nothing else; its pods are not.
	c.apply(spread, "early", 8080)
	c.await("a pod fails without "+subnetFile, func() error {
		events := c.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(events, subnetFile) {
			return fmt.Errorf("the events are: %s", events)
		}
		return nil
	})
	for _, m := range c.Members {
		if states := c.podStates(m); len(states) != 0 {
			t.Errorf("crinetctl on %s lists %+v, want no pod", m.Name, states)
		}
	}
	flannels := c.startFlannel("vxlan", "--kube-subnet-mgr", "--kubeconfig-file="+cluster.Kubeconfig, "--net-config-path="+flannelFile)
	c.pods("early", 2)
	c.overFlannel("early", 8080)

	t.Run("agent", func(t *testing.T) { c.in(t).flannelDies(flannels) })
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run("etcd-"+backend, func(t *testing.T) {
			c := c.in(t)
			c.stopAll(flannels)
			for _, m := range c.Members {
				// The device of the last backend, whose routes would be more specific.
				_, err := m.Run(c.ctx, "ip", "link", "del", "flannel.1")
				c.ok(err)
			}
			c.putEtcd(flannelKey, fmt.Sprintf(flannelNet, backend))
			flannels = c.startFlannel(backend, "--etcd-endpoints=http://"+c.Members[0].IPv4()+":2379")
			c.overFlannel("early", 8080)
			c.apply(spread, backend, 8081)
			c.pods(backend, 2)
			c.overFlannel(backend, 8081)
			for _, m := range c.Members {
				_, err := m.Run(c.ctx, "ip", "link", "show", flannelDevice[backend])
				c.ok(err)
			}
			c.kubectl("delete", "daemonset", backend)
			c.gone(backend)
		})
	}
	t.Run("other-subnets", func(t *testing.T) { c.in(t).subnetsChange(flannels) })
	for _, m := range c.Members {
		if left := c.agree(m); left != 0 {
			t.Errorf("%d pods are left on %s", left, m.Name)
		}
	}
}

// startFlannel runs flanneld on all nodes and waits until it has told its subnets.
func (c *testCluster) startFlannel(backend string, flags ...string) []*node.Service {
	c.t.Helper()
	var services []*node.Service
	for _, m := range c.Members {
		c.ok(m.WriteFile(flannelFile, fmt.Sprintf(flannelNet, backend)))
		line := append([]string{"env", "NODE_NAME=" + m.Name, kit.Tool("flannel"), "--iface=" + node.Uplink, "--ip-masq"}, flags...)
		s := m.Service("flanneld", line...)
		c.ok(s.Start())
		services = append(services, s)
	}
	for i, m := range c.Members {
		c.ok(services[i].Await(c.ctx, func(context.Context) error {
			_, err := os.Stat(m.Path(subnetFile))
			return err
		}))
	}
	return services
}

// stopAll kills services.
func (c *testCluster) stopAll(services []*node.Service) {
	c.t.Helper()
	for _, s := range services {
		c.ok(s.Kill())
	}
}

// subnetsChange gives the cluster another network, and each node another subnet. A
// bridge that has the old gateway's address fails new pods, as the reference plugin
// does, and tells how to mend it. The old pods go, with what made them, the bridge after them, and
// new ones come.
func (c *testCluster) subnetsChange(flannels []*node.Service) {
	c.stopAll(flannels)
	const other = "10.245."
	c.putEtcd(flannelKey, strings.ReplaceAll(fmt.Sprintf(flannelNet, "udp"), "10.244.", other))
	flannels = c.startFlannel("udp", "--etcd-endpoints=http://"+c.Members[0].IPv4()+":2379")
	for i, m := range c.Members {
		c.ok(flannels[i].Await(c.ctx, func(context.Context) error {
			text, err := os.ReadFile(m.Path(subnetFile))
			if err == nil && !strings.Contains(string(text), "FLANNEL_SUBNET="+other) {
				err = fmt.Errorf("%s has %s", subnetFile, text)
			}
			return err
		}))
	}
	c.apply(spread, "moved", 8083)
	c.await("new pods fail, since the bridge has another address", func() error {
		events := c.kubectl("get", "events", "--field-selector=reason=FailedCreatePodSandBox", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(events, "bridge cni0: it has the address 10.244.") {
			return fmt.Errorf("the events are: %s", events)
		}
		return nil
	})
	c.kubectl("delete", "daemonset", "early")
	c.gone("early")
	for _, m := range c.Members {
		_, err := m.Run(c.ctx, "ip", "link", "del", "cni0")
		c.ok(err)
	}
	for _, pod := range c.pods("moved", 2) {
		if !strings.HasPrefix(pod.Status.PodIP, other) {
			c.t.Errorf("pod %s has the address %s, want one in %s0.0/16", pod.Metadata.Name, pod.Status.PodIP, other)
		}
	}
	c.overFlannel("moved", 8083)
	c.kubectl("delete", "daemonset", "moved")
	c.gone("moved")
}

// putEtcd stores a value in etcd, by its gateway for HTTP.
func (c *testCluster) putEtcd(key, value string) {
	c.t.Helper()
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	body := fmt.Sprintf(`{"key":%q,"value":%q}`, encode(key), encode(value))
	m := c.Members[0]
	req, err := http.NewRequestWithContext(c.ctx, http.MethodPost, "http://"+m.IPv4()+":2379/v3/kv/put", strings.NewReader(body))
	c.ok(err)
	transport := &http.Transport{DialContext: m.Dial, DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	c.ok(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		c.t.Fatalf("put %s into etcd: %s", key, resp.Status)
	}
}

// overFlannel has the pods of an app, one on each node, ask each other, and asks
// their hostPorts from outside.
func (c *testCluster) overFlannel(app string, port int) {
	c.t.Helper()
	pods := c.pods(app, 2)
	for i, from := range pods {
		to := pods[1-i]
		place := c.place(from)
		c.answers(place, to.Status.PodIP, 80, to.Metadata.Name)
		if _, client, err := ask(c.ctx, place, "tcp", to.Status.PodIP, 80); err != nil || !strings.HasPrefix(client, from.Status.PodIP+":") {
			c.t.Errorf("pod %s sees its client as %s: %v, want %s", to.Metadata.Name, client, err, from.Status.PodIP)
		}
		m := c.Member(to.Spec.NodeName)
		c.answers(m.Outside, m.IPv4(), port, to.Metadata.Name)
	}
}

// flannelDies: pods reach each other without flanneld, which kept nothing but the
// kernel's routes. Pods that come when subnet.env is lost as well wait until it is
// back, and those that go leave nothing.
func (c *testCluster) flannelDies(flannels []*node.Service) {
	c.stopAll(flannels)
	c.overFlannel("early", 8080)
	c.apply(spread, "later", 8082)
	c.pods("later", 2)
	kept := make(map[string]string)
	for _, m := range c.Members {
		text, err := os.ReadFile(m.Path(subnetFile))
		c.ok(err)
		kept[m.Name] = string(text)
		c.ok(os.Remove(m.Path(subnetFile)))
	}
	c.kubectl("rollout", "restart", "daemonset/later")
	c.await("pods wait for "+subnetFile, func() error {
		pods, err := c.Pods(c.ctx, "app=later")
		for _, pod := range pods {
			if err == nil && !pod.Ready() && pod.Metadata.DeletionTimestamp == "" {
				return nil
			}
		}
		return fmt.Errorf("all are ready: %w", err)
	})
	for _, m := range c.Members {
		c.ok(m.WriteFile(subnetFile, kept[m.Name]))
	}
	c.kubectl("rollout", "status", "daemonset/later", "--timeout="+awaitTimeout.String())
	c.overFlannel("later", 8082)
	c.kubectl("delete", "daemonset", "later")
	c.gone("later")
	for _, s := range flannels {
		c.ok(s.Start())
	}
}
