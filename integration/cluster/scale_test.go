package cluster_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/cluster"
)

// Variables of the environment: how many pods the Deployments have together,
// how often they are scaled up and down, and the seed of an earlier run. Without
// them the test is small.
const (
	podsVariable   = "CRINET_TEST_SCALE_PODS"
	roundsVariable = "CRINET_TEST_SCALE_ROUNDS"
	seedVariable   = "CRINET_TEST_SCALE_SEED"
)

const (
	// killPause and killSpread are the least time between two kills, and how much
	// more it may be.
	killPause, killSpread = time.Second, 5 * time.Second
	// killsEach is how often somebody is killed each time that the Deployments are
	// scaled. Without an end to it pods would come up very slowly: the kubelet waits
	// longer after each failure.
	killsEach = 4
)

func number(t *testing.T, variable string, usual uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// Deployments are scaled up and down on one node while the kubelet, containerd and
// crinetd are killed at random. Up and down, all that know pods agree on them:
// API server, containerd, crinet's journal, host-local, the hostPort table, the
// kernel.
func TestScaleUnderKills(t *testing.T) {
	t.Parallel()
	pods, rounds := int(number(t, podsVariable, 20)), int(number(t, roundsVariable, 2))
	seed := number(t, seedVariable, rand.Uint64())
	random := rand.New(rand.NewPCG(seed, 0))
	c := newCluster(t, cluster.Options{NoDNS: true})
	c.ctx = t.Context() // large numbers take as long as they take
	m := c.Members[0]
	// Every tenth pod has a hostPort: one Deployment each, as two pods of one would
	// want the same.
	ported := max(1, pods/10)
	c.apply(web, "many", 0, "", "")
	for i := range ported {
		c.apply(web, fmt.Sprintf("ported-%d", i), 0, "", fmt.Sprintf(
			"ports: [{containerPort: 80, hostPort: %[1]d}, {containerPort: 80, hostPort: %[1]d, protocol: UDP, name: udp}]", 20000+i))
	}
	scale := func(many, each int) {
		c.kubectl("scale", "deployment/many", "--replicas="+strconv.Itoa(many))
		args := []string{"scale", "--replicas=" + strconv.Itoa(each)}
		for i := range ported {
			args = append(args, fmt.Sprintf("deployment/ported-%d", i))
		}
		c.kubectl(args...)
	}
	kills := 0
	for round := range rounds {
		for _, up := range []bool{true, false} {
			want := 0
			began := time.Now()
			wait := c.killAtRandom(m, random, killsEach, &kills)
			if up {
				want = pods
				scale(pods-ported, 1)
			} else {
				scale(0, 0)
			}
			wait()
			c.settle(want)
			have := c.agree(m)
			if have != want {
				t.Fatalf("seed %d, round %d: %d pods, want %d", seed, round, have, want)
			}
			t.Logf("round %d: all agree on %d pods after %v and %d kills so far", round+1, have, time.Since(began).Round(time.Second), kills)
			if up {
				for i := range ported {
					c.answers(m.Outside, m.IPv4(), 20000+i, fmt.Sprintf("ported-%d-", i))
				}
			}
		}
	}
	t.Logf("seed %d: %d pods, %d rounds, %d kills", seed, pods, rounds, kills)
	if kills == 0 {
		t.Error("nothing was killed")
	}
}

// settle waits until that many pods are ready, and no others are there. It waits
// as long as the number changes.
func (c *testCluster) settle(want int) {
	c.t.Helper()
	const patience = 5 * time.Minute
	last, changed := -1, time.Now()
	for {
		pods, err := c.Pods(c.ctx, "")
		c.ok(err)
		ready := 0
		for _, pod := range pods {
			if pod.Ready() && pod.Metadata.DeletionTimestamp == "" {
				ready++
			}
		}
		if ready == want && len(pods) == want {
			return
		}
		if now := ready*1000 + len(pods); now != last {
			last, changed = now, time.Now()
		}
		if time.Since(changed) > patience {
			for _, pod := range pods {
				if !pod.Ready() {
					c.t.Logf("%s: %+v", pod.Metadata.Name, pod.Status)
				}
			}
			c.t.Fatalf("%d pods, %d of them ready, want %d: nothing has changed for %v", len(pods), ready, want, patience)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// killAtRandom kills the kubelet, containerd and crinetd, one or several at a
// time, and starts them again, that many times. The function that it returns waits
// for the end of it.
func (c *testCluster) killAtRandom(m *cluster.Member, random *rand.Rand, times int, kills *int) (wait func()) {
	done := make(chan error, 1)
	victims := []struct{ kill, start func() error }{
		{m.Kubelet.Kill, m.Kubelet.Start},
		{m.KillContainerd, func() error { return m.StartContainerd(c.ctx) }},
		{m.KillCrinetd, func() error { return m.StartCrinetdAgain(c.ctx) }},
	}
	kill := func() error {
		chosen := 1 + random.IntN(1<<len(victims)-1) // which of them, in bits
		for i, v := range victims {
			if chosen&(1<<i) != 0 {
				if err := v.kill(); err != nil {
					return err
				}
				*kills++
			}
		}
		for i, v := range victims {
			if chosen&(1<<i) != 0 {
				if err := v.start(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	go func() {
		var err error
		for i := 0; i < times && err == nil; i++ {
			time.Sleep(killPause + time.Duration(random.Int64N(int64(killSpread))))
			err = kill()
		}
		done <- err
	}()
	return func() {
		c.t.Helper()
		c.ok(<-done)
	}
}
