// Package integration_test runs crinetd on real nodes: containerd, runc, crictl
// and the reference plugins. Each test has a node of its own. See package node.
package integration_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// confDirVariable names an environment variable: "own" gives the containerd of
// each node a CNI conf dir of its own, where the test does not say which it has.
const confDirVariable = "CRINET_TEST_CONF_DIR"

// containerdVariable names an environment variable: the containerd of each node, "1.7"
// or "debian", where the test does not say which it has.
const containerdVariable = "CRINET_TEST_CONTAINERD"

const (
	testTimeout  = 3 * time.Minute
	cleanTimeout = 20 * time.Second
)

var kit *node.Kit // made by TestMain, read by the tests

func TestMain(m *testing.M) {
	os.Exit(node.Main(m, true, func(k *node.Kit) { kit = k }))
}

// testNode is a node whose faults fail the test.
type testNode struct {
	*node.Node
	t   *testing.T
	ctx context.Context

	history *recording // nil while none is recorded
}

// newNode starts a node without daemons. At the end of the test it checks that
// crinetd neither panicked nor had a data race.
func newNode(t *testing.T) *testNode {
	t.Helper()
	return newNodeOf(t, node.Options{})
}

// newNodeOf is newNode with options.
func newNodeOf(t *testing.T, options node.Options) *testNode {
	t.Helper()
	if options.RuntimeConfDir == "" && os.Getenv(confDirVariable) == "own" {
		options.RuntimeConfDir = ownConfDir
	}
	if options.Containerd == "" {
		options.Containerd = node.Containerd(os.Getenv(containerdVariable))
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout+soak(t, 0))
	t.Cleanup(cancel)
	n, err := kit.Start(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if log, err := n.Log("crinetd"); err == nil {
			for _, bad := range []string{"WARNING: DATA RACE", "panic", "fatal error:"} {
				if strings.Contains(log, bad) {
					t.Errorf("crinetd's log has %q", bad)
				}
			}
		}
		if t.Failed() {
			t.Log(n.LogTails(100))
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testNode{Node: n, t: t, ctx: ctx}
}

// seedBridge is the bridge configuration that the project started from.
const seedBridge = `{
	"cniVersion": "0.3.0",
	"name": "mynet",
	"type": "bridge",
	"bridge": "mynet0",
	"isDefaultGateway": true,
	"forceAddress": false,
	"ipMasq": true,
	"hairpinMode": true,
	"ipam": {
		"type": "host-local",
		"subnet": "10.10.0.0/16"
	}
}`

// seedSubnet and seedGateway are the addresses that it gives.
const (
	seedSubnet  = "10.10.0.0/16"
	seedGateway = "10.10.0.1"
)

// cniFlags select the first network of the conf dir.
var cniFlags = []string{"--network-plugin=cni", "--v=4"}

// runtimeFlags name where a runtime would look, for nodes without a runtime that
// crinetd could ask.
var runtimeFlags = []string{"--runtime-cni-conf-dir=" + node.ConfDir, "--runtime-cni-bin-dir=" + node.BinDir}

// newNodeWith starts a node with containerd, a conf file and crinetd.
func newNodeWith(t *testing.T, confFile, conf string, flags ...string) (*testNode, *node.Client) {
	t.Helper()
	n := newNode(t)
	n.ok(n.WriteConf(confFile, conf))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, flags...))
	return n, n.client(node.CrinetdSocket)
}

// newSeedNode is newNodeWith the seed's bridge, ready for pods.
func newSeedNode(t *testing.T) (*testNode, *node.Client) {
	t.Helper()
	n, client := newNodeWith(t, "10-mynet.conf", seedBridge, cniFlags...)
	n.awaitNetwork(client, true)
	return n, client
}

func (n *testNode) ok(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *testNode) client(socket string) *node.Client {
	n.t.Helper()
	client, err := n.Client(socket)
	n.ok(err)
	return client
}

// awaitNetwork waits until NetworkReady is that, and returns its reason and
// message.
func (n *testNode) awaitNetwork(client *node.Client, ready bool) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
	defer cancel()
	condition, err := client.AwaitNetwork(ctx, ready)
	n.ok(err)
	return condition.GetReason() + ": " + condition.GetMessage()
}

func (n *testNode) runPod(client *node.Client, name string) *node.Pod {
	n.t.Helper()
	pod, err := client.RunPod(n.ctx, n.PodConfig(name))
	n.ok(err)
	return pod
}

// address returns the pod's one address.
func (n *testNode) address(pod *node.Pod) string {
	n.t.Helper()
	addrs, err := pod.Addresses(n.ctx)
	n.ok(err)
	if len(addrs) != 1 {
		n.t.Fatalf("pod %s has the addresses %q, want one", pod.Config.GetMetadata().GetName(), addrs)
	}
	return addrs[0]
}

// noLeftovers checks that no pod has left anything on the node.
func (n *testNode) noLeftovers() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
	defer cancel()
	left, err := n.AwaitClean(ctx)
	n.ok(err)
	if len(left) != 0 {
		n.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}
