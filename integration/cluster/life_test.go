package cluster_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// lifePod has all that a kubelet does to a pod around its network: an init
// container that uses it, probes over it, and a preStop hook that tells another
// pod over it.
const lifePod = `apiVersion: v1
kind: Pod
metadata: {name: life, labels: {app: life}}
spec:
  terminationGracePeriodSeconds: 20
  initContainers:
  - name: init
    image: ` + node.TestImage + `
    imagePullPolicy: IfNotPresent
    command: [/nodetest, get, "http://%[1]s/init"]
  containers:
  - name: web
    image: ` + node.TestImage + `
    imagePullPolicy: IfNotPresent
    startupProbe: {httpGet: {path: /startup, port: 80}, periodSeconds: 1, failureThreshold: 60}
    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 60}
    readinessProbe: {exec: {command: [/nodetest, get, "http://127.0.0.1/ready"]}, periodSeconds: 1, timeoutSeconds: 10}
    lifecycle: {preStop: {exec: {command: [/nodetest, get, "http://%[1]s/stop"]}}}
`

// The network of a pod is there from its first init container to the end of its
// preStop hook, and probes reach it.
func TestPodsLifeUnderKubelet(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{NoDNS: true})
	c.apply(web, "web", 1, "", "")
	peer := c.pod("web")
	c.apply(lifePod, peer.Status.PodIP)
	pod := c.pod("life")
	c.answers(c.Members[0].Place, pod.Status.PodIP, 80, "life")
	if log := c.kubectl("logs", "life"); !strings.Contains(log, "GET /startup") || !strings.Contains(log, "GET /ready") {
		t.Errorf("the pod's log has no probes:\n%s", log)
	}
	c.kubectl("delete", "pod", "life")
	log := c.kubectl("logs", peer.Metadata.Name)
	for _, hook := range []string{"/init", "/stop"} {
		if want := "GET " + hook + " " + pod.Status.PodIP + ":"; !strings.Contains(log, want) {
			t.Errorf("the peer's log has no %q:\n%s", want, log)
		}
	}
	c.hostNetwork()
	c.agree(c.Members[0])
	t.Run("eviction", func(t *testing.T) { c.in(t).eviction() })
	t.Run("restarts", func(t *testing.T) { c.in(t).restarts() })
	t.Run("reboot", func(t *testing.T) { c.in(t).reboot() })
	t.Run("sockets", func(t *testing.T) { c.in(t).heldSockets() })
}

// hostNetwork runs a pod in the node's network.
func (c *testCluster) hostNetwork() {
	c.t.Helper()
	c.apply(staticPod, "host", "hostNetwork: true")
	m := c.Members[0]
	if pod := c.pod("host"); pod.Status.PodIP != m.IPv4() {
		c.t.Errorf("the pod in the node's network has address %s, want %s", pod.Status.PodIP, m.IPv4())
	}
	if _, err := m.AwaitGet(c.ctx, "http://"+m.IPv4()+"/"); err != nil {
		c.t.Error(err)
	}
	c.kubectl("delete", "pod", "host")
}

// eviction has the kubelet evict a pod that writes more than it may. Its address
// and its hostPort are free again.
func (c *testCluster) eviction() {
	c.apply(`apiVersion: v1
kind: Pod
metadata: {name: greedy, labels: {app: greedy}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: ` + node.TestImage + `
    imagePullPolicy: IfNotPresent
    ports: [{containerPort: 80, hostPort: 8080}]
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {sizeLimit: 1Mi}}]
`)
	c.pod("greedy")
	m := c.Members[0]
	c.agree(m)
	c.kubectl("exec", "greedy", "--", "sh", "-c", "i=0; while test $i -lt 200; do seq 1 2000; i=$((i+1)); done >/scratch/filler")
	c.await("the pod is evicted", func() error {
		events := c.kubectl("get", "events", "--field-selector=reason=Evicted,involvedObject.name=greedy")
		pods, err := c.Pods(c.ctx, "app=greedy")
		if err == nil && (!strings.Contains(events, "exceeds the limit") || len(pods) != 1 || pods[0].Ready()) {
			err = fmt.Errorf("events: %s; %+v", events, pods)
		}
		return err
	})
	if left := c.agree(m); left != 1 {
		c.t.Errorf("%d pods have a network, want 1", left)
	}
	c.kubectl("delete", "pod", "greedy")
}

// restarts ends each daemon in turn as a service manager does, and starts it
// again. A running pod and its hostPort do not notice; a Deployment is rolled
// meanwhile.
func (c *testCluster) restarts() {
	c.apply(web, "steady", 1, "", "ports: [{containerPort: 80, hostPort: 8081}, {containerPort: 80, hostPort: 8081, protocol: UDP, name: udp}]")
	steady := c.pod("steady")
	m := c.Members[0]
	for _, daemon := range []struct {
		name        string
		stop, start func() error
	}{
		{"kubelet", m.Kubelet.Stop, m.Kubelet.Start},
		{"containerd", m.StopContainerd, func() error { return m.StartContainerd(c.ctx) }},
		{"crinetd", m.StopCrinetd, func() error { return m.StartCrinetdAgain(c.ctx) }},
	} {
		c.kubectl("rollout", "restart", "deployment/web")
		c.ok(daemon.stop())
		c.answers(m.Outside, m.IPv4(), 8081, "steady")
		c.ok(daemon.start())
		c.kubectl("rollout", "status", "deployment/web", "--timeout="+awaitTimeout.String())
		c.pods("web", 1)
		c.agree(m)
	}
	now := c.pod("steady")
	if now.Metadata.UID != steady.Metadata.UID || now.Status.ContainerStatuses[0].RestartCount != 0 || now.Status.PodIP != steady.Status.PodIP {
		c.t.Errorf("the pod is %+v after the restarts of all daemons, want it as it was: %+v", now, steady)
	}
}

// reboot cuts the node's power. Its pods, also a static one, come back with their
// hostPorts, and nothing of the last boot is left.
func (c *testCluster) reboot() {
	m := c.Members[0]
	c.ok(m.WriteFile(cluster.ManifestDir+"/static.yaml", fmt.Sprintf(staticPod, "static", "")))
	c.pod("static")
	before := c.agree(m)
	c.ok(c.Reboot(c.ctx, m))
	c.await("the pods are back", func() error {
		pods, err := c.Pods(c.ctx, "")
		for _, pod := range pods {
			if err == nil && (!pod.Ready() || pod.Metadata.DeletionTimestamp != "") {
				err = fmt.Errorf("pod %s is not ready: %+v", pod.Metadata.Name, pod.Status)
			}
			for _, status := range pod.Status.ContainerStatuses {
				if err == nil && status.RestartCount == 0 {
					err = errors.New("the kubelet has not yet seen that pod " + pod.Metadata.Name + " has ended")
				}
			}
		}
		return err
	})
	if after := c.agree(m); after != before {
		c.t.Errorf("%d pods are back, want %d", after, before)
	}
	c.answers(m.Outside, m.IPv4(), 8081, "steady")
}
