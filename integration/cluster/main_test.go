package cluster_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

const (
	// testTimeout bounds one test. Nothing that passes comes near it.
	testTimeout = 10 * time.Minute
	// awaitTimeout bounds the wait for one condition, on a machine that has much
	// else to do.
	awaitTimeout = 2 * time.Minute
)

var kit *node.Kit // made by TestMain, read by the tests

func TestMain(m *testing.M) {
	os.Exit(node.Main(m, true, func(k *node.Kit) { kit = k }))
}

// testCluster is a cluster whose faults fail the test.
type testCluster struct {
	*cluster.Cluster
	t   *testing.T
	ctx context.Context
}

// newCluster starts a cluster. At the end of the test it checks that no crinetd
// panicked or had a data race.
func newCluster(t *testing.T, options cluster.Options) *testCluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	began := time.Now()
	options.Progress = func(step string) { t.Logf("%5.1fs %s", time.Since(began).Seconds(), step) }
	c, err := cluster.Start(ctx, kit, options)
	if err != nil {
		t.Fatal(err)
	}
	options.Progress("started")
	t.Cleanup(func() {
		for _, m := range c.Members {
			log, err := m.Log("crinetd")
			if err != nil {
				t.Error(err)
			}
			for _, bad := range []string{"WARNING: DATA RACE", "panic", "fatal error:"} {
				if strings.Contains(log, bad) {
					t.Errorf("crinetd's log on %s has %q", m.Name, bad)
				}
			}
		}
		if t.Failed() {
			t.Log(c.LogTails(60))
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testCluster{Cluster: c, t: t, ctx: ctx}
}

func (c *testCluster) ok(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// in returns the cluster for a subtest, with what fails there.
func (c *testCluster) in(t *testing.T) *testCluster {
	return &testCluster{Cluster: c.Cluster, t: t, ctx: c.ctx}
}

// kubectl runs kubectl, which must succeed, and returns what it printed.
func (c *testCluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.Kubectl(c.ctx, args...)
	c.ok(err)
	return out
}

// apply has the API server hold objects, given as YAML and its values.
func (c *testCluster) apply(manifest string, values ...any) {
	c.t.Helper()
	c.ok(c.Apply(c.ctx, fmt.Sprintf(manifest, values...)))
}

// await waits for a condition.
func (c *testCluster) await(what string, check func() error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, awaitTimeout)
	defer cancel()
	c.ok(cluster.Await(ctx, what, check))
}

// pods waits until that many pods with the label app are ready.
func (c *testCluster) pods(app string, want int) []cluster.Pod {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, awaitTimeout)
	defer cancel()
	pods, err := c.AwaitPods(ctx, "app="+app, want)
	c.ok(err)
	return pods
}

// gone waits until no pod with the label app is there.
func (c *testCluster) gone(app string) {
	c.t.Helper()
	c.pods(app, 0)
}

// pod waits until the one pod with the label app is ready.
func (c *testCluster) pod(app string) cluster.Pod {
	c.t.Helper()
	return c.pods(app, 1)[0]
}

// place is a pod's network.
func (c *testCluster) place(pod cluster.Pod) *node.Place {
	c.t.Helper()
	client, err := c.Member(pod.Spec.NodeName).Client(node.CrinetdSocket)
	c.ok(err)
	sandbox, err := client.PodNamed(c.ctx, pod.Metadata.Namespace, pod.Metadata.Name)
	c.ok(err)
	place, err := sandbox.Place(c.ctx)
	c.ok(err)
	return place
}

// askTimeout is how long one question may take, which is asked again.
const askTimeout = 5 * time.Second

// ask sends one question and returns the name of who answers, and the client's
// address that it saw.
func ask(ctx context.Context, from *node.Place, protocol, address string, port int) (name, client string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var text string
	target := net.JoinHostPort(address, strconv.Itoa(port))
	if protocol == "tcp" {
		text, err = from.Get(ctx, "http://"+target+"/")
	} else {
		text, err = from.AskUDP(ctx, target)
	}
	fields := strings.Fields(text)
	if err == nil && len(fields) < 2 {
		err = fmt.Errorf("%s %s: the answer is %q", protocol, target, text)
	}
	if err != nil {
		return "", "", err
	}
	return fields[0], fields[1], nil
}

// answers checks that somebody whose name begins like that answers over TCP and
// UDP: at once, or as soon as kube-proxy has come so far. Whoever else answers is
// a fault.
func (c *testCluster) answers(from *node.Place, address string, port int, want string) {
	c.t.Helper()
	for _, protocol := range []string{"tcp", "udp"} {
		c.await(fmt.Sprintf("%s answers %s %s:%d", want, protocol, address, port), func() error {
			name, _, err := ask(c.ctx, from, protocol, address, port)
			if err == nil && !strings.HasPrefix(name, want) {
				c.t.Errorf("%s %s:%d is answered by %s, want %s", protocol, address, port, name, want)
			}
			return err
		})
	}
}
