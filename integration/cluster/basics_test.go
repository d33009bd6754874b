package cluster_test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// web is a Deployment of web servers, by name and number, with more fields of
// its pods and of their container.
const web = `apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      %[3]s
      containers:
      - {name: web, image: ` + node.TestImage + `, imagePullPolicy: IfNotPresent, %[4]s}
`

// A kubelet whose runtime is crinetd gets its node ready and runs a Deployment:
// addresses are of the pod CIDR that the controller manager gave the node, and
// what users do to pods works.
func TestNodeAndDeployment(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{})
	nodes, err := c.Nodes(c.ctx)
	c.ok(err)
	info := nodes[0].Status.NodeInfo
	t.Logf("kubelet %s with %s", info.KubeletVersion, info.ContainerRuntimeVersion)
	c.apply(web, "web", 3, "", "")
	pods := c.pods("web", 3)
	podCIDR, err := netip.ParsePrefix(nodes[0].Spec.PodCIDRs[0])
	c.ok(err)
	for _, pod := range pods {
		addr, err := netip.ParseAddr(pod.Status.PodIP)
		c.ok(err)
		if !podCIDR.Contains(addr) {
			t.Errorf("pod %s has address %v, want one of the node's pod CIDR %v", pod.Metadata.Name, addr, podCIDR)
		}
		c.answers(c.Members[0].Place, pod.Status.PodIP, 80, pod.Metadata.Name)
		c.answers(c.place(pods[0]), pod.Status.PodIP, 80, pod.Metadata.Name)
	}
	name := pods[0].Metadata.Name
	if out := c.kubectl("exec", name, "--", "hostname"); strings.TrimSpace(out) != name {
		t.Errorf("exec hostname prints %q, want %s", out, name)
	}
	if out := c.kubectl("logs", name); !strings.HasPrefix(out, "ready\n") {
		t.Errorf("the log of pod %s is %q, want it to begin with ready", name, out)
	}
	if body := c.forwarded(name, ""); !strings.HasPrefix(body, name+" ") {
		t.Errorf("through port-forward answers %q, want %s", body, name)
	}
	c.rolled("web", 3)
	t.Run("user-namespace", func(t *testing.T) { c.in(t).userNamespace() })
	c.kubectl("delete", "deployment", "web")
	c.gone("web")
	if left := c.agree(c.Members[0]); left != 1 {
		t.Errorf("%d pods are left, want that of CoreDNS alone", left)
	}
}

// userNamespace runs a pod in a user namespace of its own, with a hostPort.
func (c *testCluster) userNamespace() {
	c.t.Helper()
	c.apply(web, "mapped", 1, "hostUsers: false", "ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 80, hostPort: 8080, protocol: UDP, name: udp}]")
	pod := c.pod("mapped")
	ids := strings.Fields(c.kubectl("exec", pod.Metadata.Name, "--", "cat", "/proc/self/uid_map"))
	if len(ids) != 3 || ids[0] != "0" || ids[1] == "0" {
		c.t.Errorf("the pod's user ids are mapped by %q, want root to be another one", ids)
	}
	m := c.Members[0]
	c.answers(m.Place, pod.Status.PodIP, 80, "mapped-")
	c.answers(m.Outside, m.IPv4(), 8080, "mapped-")
	c.agree(m)
	c.kubectl("delete", "deployment", "mapped")
	c.gone("mapped")
}

// forwarded fetches a page from a pod's port 80 through kubectl port-forward.
func (c *testCluster) forwarded(pod, flags string) string {
	c.t.Helper()
	m := c.Members[0]
	args := append([]string{"--kubeconfig=/etc/kubernetes/admin.conf", "port-forward", "pod/" + pod, ":80"}, strings.Fields(flags)...)
	cmd := m.Command(c.ctx, "kubectl", args...)
	stdout, err := cmd.StdoutPipe()
	c.ok(err)
	c.ok(m.Start(cmd))
	defer func() {
		_ = cmd.Process.Kill()
		_, _ = io.Copy(io.Discard, stdout)
		_ = cmd.Wait() // killed
	}()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	c.ok(err)
	// Forwarding from 127.0.0.1:34567 -> 80
	var address string
	if _, err := fmt.Sscanf(line, "Forwarding from %s ->", &address); err != nil {
		c.t.Fatalf("kubectl port-forward prints %q: %v", line, err)
	}
	body, err := m.AwaitGet(c.ctx, "http://"+address+"/")
	c.ok(err)
	return body
}

// rolled restarts a Deployment while a client asks its pods, and waits for the
// new ones.
func (c *testCluster) rolled(deployment string, pods int) {
	c.t.Helper()
	before := make(map[string]bool)
	for _, pod := range c.pods(deployment, pods) {
		before[pod.Metadata.UID] = true
	}
	c.kubectl("rollout", "restart", "deployment/"+deployment)
	c.kubectl("rollout", "status", "deployment/"+deployment, "--timeout="+awaitTimeout.String())
	for _, pod := range c.pods(deployment, pods) {
		if before[pod.Metadata.UID] {
			c.t.Errorf("pod %s is from before the restart of its deployment", pod.Metadata.Name)
		}
	}
}
