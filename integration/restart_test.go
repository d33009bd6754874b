package integration_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// restartsVariable names an environment variable: how often TestRestarts restarts
// crinetd, for each of its two loads.
const restartsVariable = "CRINET_TEST_RESTARTS"

// callersOf is how many callers of each kind call at once.
const callersOf = 4

// TestRestarts restarts crinetd under callers that never pause, while its sockets are
// held as systemd holds them: no call is refused or fails, and flows through hostPorts
// go on. It logs the pauses that the
// callers saw: once with calls that merely pass, once with pods that come and go.
func TestRestarts(t *testing.T) {
	t.Parallel()
	restarts := 5
	if value := os.Getenv(restartsVariable); value != "" {
		var err error
		if restarts, err = strconv.Atoi(value); err != nil {
			t.Fatal(err)
		}
	}
	n := newNode(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout+time.Duration(restarts)*time.Minute)
	defer cancel()
	n.ctx = ctx
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.HoldSockets())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	pod := n.servePod(client, "stays", bothPorts("", 9000)...)
	tcpFlow, udpFlow := n.startLongFlow("tcp", 9000, "stays"), n.startLongFlow("udp", 9000, "stays")

	n.restartUnder("nothing under way", restarts, n.passingCallers(pod.ID))
	n.restartUnder("pods come and go", restarts, append(n.passingCallers(pod.ID), n.podCallers()...))
	tcpFlow.unbroken(t, "TCP through a hostPort")
	udpFlow.unbroken(t, "UDP through a hostPort")
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// caller makes one call, or some that belong together.
type caller struct {
	kind string
	call func(ctx context.Context) error
}

// passingCallers make calls that crinetd answers or passes on at once. Each has a
// connection of its own.
func (n *testNode) passingCallers(id string) []caller {
	var all []caller
	for range callersOf {
		c := n.client(node.CrinetdSocket).Runtime
		all = append(all, caller{"Version", func(ctx context.Context) error {
			_, err := c.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		}})
		c = n.client(node.CrinetdSocket).Runtime
		all = append(all, caller{"Status", func(ctx context.Context) error {
			_, err := c.Status(ctx, &runtimeapi.StatusRequest{})
			return err
		}})
		c = n.client(node.CrinetdSocket).Runtime
		all = append(all, caller{"ListPodSandbox", func(ctx context.Context) error {
			_, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		}})
		c = n.client(node.CrinetdSocket).Runtime
		all = append(all, caller{"PodSandboxStatus", func(ctx context.Context) error {
			_, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		}})
	}
	return all
}

// podCallers run, stop and remove pods.
func (n *testNode) podCallers() []caller {
	var all []caller
	for i := range callersOf {
		c := n.client(node.CrinetdSocket)
		run := 0
		all = append(all, caller{"pod", func(ctx context.Context) error {
			run++
			pod, err := c.RunPod(ctx, n.PodConfig(fmt.Sprintf("p%d-%d", i, run)))
			if err != nil {
				return err
			}
			return pod.StopAndRemove(ctx)
		}})
	}
	return all
}

// took is when a call began and ended.
type took struct{ begin, end time.Time }

// restartUnder restarts crinetd again and again while the callers call. A call that
// fails fails the test.
func (n *testNode) restartUnder(load string, restarts int, callers []caller) {
	n.t.Helper()
	ctx, stop := context.WithCancel(n.ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards what follows
	var passed []took
	calls := make(map[string]int)
	for _, c := range callers {
		calls[c.kind] = 0
	}
	for _, c := range callers {
		wg.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				if err := c.call(n.ctx); err != nil {
					n.t.Errorf("%s: %s: %v", load, c.kind, err)
					return
				}
				mu.Lock()
				calls[c.kind]++
				if c.kind == "Version" || c.kind == "Status" {
					passed = append(passed, took{begin, time.Now()})
				}
				mu.Unlock()
			}
		})
	}
	var stops []time.Time
	n.awaitKinds(&mu, calls)
	for range restarts {
		stops = append(stops, time.Now())
		if err := n.StopCrinetd(); err != nil {
			n.t.Errorf("stop: %v", err)
		}
		if err := n.StartCrinetd(n.ctx, cniFlags...); err != nil {
			n.t.Errorf("start: %v", err)
			break
		}
		n.awaitKinds(&mu, calls)
	}
	stop()
	wg.Wait()
	n.t.Logf("%s: %d restarts under %d callers, calls: %v; longest wait of a Version or Status at each restart: %s",
		load, restarts, len(callers), calls, pauses(stops, passed))
}

// awaitKinds waits until each kind of call has been made five times more.
func (n *testNode) awaitKinds(mu *sync.Mutex, calls map[string]int) {
	n.t.Helper()
	more := func(before map[string]int) bool {
		mu.Lock()
		defer mu.Unlock()
		for kind, had := range before {
			if calls[kind] < had+5 {
				return false
			}
		}
		return true
	}
	before := make(map[string]int)
	mu.Lock()
	for kind, count := range calls {
		before[kind] = count
	}
	mu.Unlock()
	for n.ctx.Err() == nil && !n.t.Failed() && !more(before) {
		time.Sleep(10 * time.Millisecond)
	}
}

// pauses says how long the longest call at each restart took.
func pauses(stops []time.Time, calls []took) string {
	var longest []time.Duration
	for i, stop := range stops {
		var most time.Duration
		for _, c := range calls {
			if c.end.After(stop) && (i+1 == len(stops) || c.begin.Before(stops[i+1])) {
				most = max(most, c.end.Sub(c.begin))
			}
		}
		longest = append(longest, most)
	}
	slices.Sort(longest)
	at := func(part float64) time.Duration {
		return longest[min(int(part*float64(len(longest))), len(longest)-1)].Round(time.Millisecond)
	}
	return fmt.Sprintf("min %v, median %v, p90 %v, max %v", at(0), at(0.5), at(0.9), at(1))
}
