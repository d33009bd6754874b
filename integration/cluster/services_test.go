package cluster_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// Ports that a Service and a hostPort both have, and one that only a hostPort has.
const (
	servicePort = 8443
	nodePort    = 30080
	plainPort   = 9090
	// balancer is the address that a load balancer gave a Service.
	balancer = "203.0.113.10"
)

// services are those of all kinds, before the pods with the label app: web; and
// one before a single pod.
const services = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports:
  - {name: tcp, protocol: TCP, port: %[1]d, targetPort: 80, nodePort: %[2]d}
  - {name: udp, protocol: UDP, port: %[1]d, targetPort: 80, nodePort: %[2]d}
---
apiVersion: v1
kind: Service
metadata: {name: self}
spec:
  selector: {one: web-1}
  ports:
  - {name: tcp, protocol: TCP, port: %[1]d, targetPort: 80}
  - {name: udp, protocol: UDP, port: %[1]d, targetPort: 80}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {one: web-1}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: external}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
`

// servicePods are, on each node, one behind the Services, one with hostPorts of
// their numbers and one that only asks.
const servicePods = `apiVersion: v1
kind: Pod
metadata: {name: web-%[1]d, labels: {app: web, one: web-%[1]d}}
spec:
  nodeName: node-%[1]d
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: ` + node.TestImage + `, imagePullPolicy: IfNotPresent}
---
apiVersion: v1
kind: Pod
metadata: {name: asker-%[1]d, labels: {app: asker}}
spec:
  nodeName: node-%[1]d
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: ` + node.TestImage + `, imagePullPolicy: IfNotPresent}
---
apiVersion: v1
kind: Pod
metadata: {name: porter-%[1]d, labels: {app: porter}}
spec:
  nodeName: node-%[1]d
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: ` + node.TestImage + `
    imagePullPolicy: IfNotPresent
    ports: [%[2]s]
`

// Services of all kinds answer beside hostPorts of the same numbers, with a real
// kube-proxy in both of its modes: from outside, from both nodes, from pods, and
// from a pod to itself. hostPorts that no Service has answer as well.
func TestServicesBesideHostPorts(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{Nodes: 2})
	for i := range c.Members {
		var ports []string
		for _, port := range []int{servicePort, nodePort, plainPort} {
			for _, protocol := range []string{"TCP", "UDP"} {
				ports = append(ports, fmt.Sprintf("{containerPort: 80, hostPort: %d, protocol: %s, name: %s-%d}", port, protocol, strings.ToLower(protocol), port))
			}
		}
		c.apply(servicePods, i+1, strings.Join(ports, ", "))
	}
	c.apply(services, servicePort, nodePort)
	c.kubectl("patch", "service", "web", "--subresource=status", "--type=merge",
		"--patch", `{"status":{"loadBalancer":{"ingress":[{"ip":"`+balancer+`"}]}}}`)
	first := c.Members[0]
	for place, args := range map[*node.Place]string{
		first.Place:   "addr add " + balancer + "/32 dev lo",
		first.Outside: "route add " + balancer + " via " + first.IPv4(),
	} {
		_, err := place.Run(c.ctx, "ip", strings.Fields(args)...)
		c.ok(err)
	}
	webs, askers := c.pods("web", 2), c.pods("asker", 2)
	c.pods("porter", 2)
	for _, mode := range []string{"iptables", "nftables"} {
		t.Run(mode, func(t *testing.T) {
			c := c.in(t)
			for _, m := range c.Members {
				c.ok(m.SetProxyMode(c.ctx, mode))
			}
			c.untilServed()
			places := map[string]*node.Place{"outside": first.Outside, "node-1": first.Place, "node-2": c.Members[1].Place}
			for _, pod := range append(webs, askers...) {
				places[pod.Metadata.Name] = c.place(pod)
			}
			c.reachServices(places)
			c.namesOfServices(askers[0].Metadata.Name)
		})
	}
	c.agree(first)
	c.agree(c.Members[1])
}

// untilServed waits until kube-proxy has begun to serve on all nodes: before, the
// hostPorts answer.
func (c *testCluster) untilServed() {
	c.t.Helper()
	for _, m := range c.Members {
		for _, protocol := range []string{"tcp", "udp"} {
			c.await("kube-proxy serves on "+m.Name, func() error {
				for _, target := range []struct {
					address string
					port    int
				}{{m.IPv4(), nodePort}, {balancer, servicePort}} {
					name, _, err := ask(c.ctx, m.Place, protocol, target.address, target.port)
					if err != nil || !strings.HasPrefix(name, "web-") {
						return fmt.Errorf("%s answers: %w", name, err)
					}
				}
				return nil
			})
		}
	}
}

// clusterIP is a Service's.
func (c *testCluster) clusterIP(service string) string {
	c.t.Helper()
	return c.kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
}

// reachServices asks every Service from every place.
func (c *testCluster) reachServices(places map[string]*node.Place) {
	c.t.Helper()
	web, self := c.clusterIP("web"), c.clusterIP("self")
	for name, from := range places {
		c.t.Logf("from %s", name)
		for i, m := range c.Members {
			c.answers(from, m.IPv4(), nodePort, "web-")
			c.answers(from, m.IPv4(), plainPort, fmt.Sprintf("porter-%d", i+1))
		}
		c.answers(from, balancer, servicePort, "web-")
		if name == "outside" {
			continue
		}
		c.answers(from, web, servicePort, "web-")
		c.answers(from, self, servicePort, "web-1")
	}
}

// namesOfServices asks for Services by their names, from a pod.
func (c *testCluster) namesOfServices(pod string) {
	c.t.Helper()
	for url, want := range map[string]string{
		fmt.Sprintf("http://web:%d/", servicePort):                            "web-",
		fmt.Sprintf("http://external.default.svc:%d/", servicePort):           "web-",
		"http://headless.default.svc.cluster.local/":                          "web-1 ",
		fmt.Sprintf("http://self.default.svc.cluster.local:%d/", servicePort): "web-1 ",
	} {
		var got string
		c.await(url+" answers", func() (err error) {
			got, err = c.Kubectl(c.ctx, "exec", pod, "--", "/nodetest", "get", url)
			return err
		})
		if !strings.HasPrefix(got, want) {
			c.t.Errorf("%s is answered by %q, want %s", url, got, want)
		}
	}
}
