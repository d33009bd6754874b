package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// soak returns how long a test of this file goes on: SOAK, such as 2h, or the short
// time of an ordinary run.
func soak(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("SOAK")
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("SOAK: %v", err)
	}
	return d
}

// soakSeed returns SOAK_SEED, which repeats the choices of an earlier run, or a new
// seed.
func soakSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("SOAK_SEED")
	if text == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("SOAK_SEED: %v", err)
	}
	return seed
}

const (
	// killWorkers run pods side by side while daemons are killed.
	killWorkers = 3
	// killRound is how long daemons are killed between two looks at the node.
	killRound = 7 * time.Second
	// killPause and killSpread are the least time between two kills, and how much
	// more it may be.
	killPause, killSpread = 200 * time.Millisecond, 1500 * time.Millisecond
	// killCall bounds each call, as the kubelet does.
	killCall = 20 * time.Second
	// killRest is the wait after a call that failed: a kubelet waits longer.
	killRest = 100 * time.Millisecond
)

// Killed at random moments under load, crinetd, containerd and both together
// leave nothing behind. SOAK says for how long, SOAK_SEED repeats a run.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	seed, end := soakSeed(t), time.Now().Add(soak(t, 20*time.Second))
	n, client := newRecordedNode(t)
	n.recordHistory(client)
	random := rand.New(rand.NewPCG(seed, 0))
	victims := [][]string{{"crinetd"}, {"containerd"}, {"crinetd", "containerd"}}
	kills, pods, rounds := 0, 0, 0
	for ; time.Now().Before(end) || rounds < len(victims); rounds++ {
		victim := victims[rounds%len(victims)]
		ctx, stop := context.WithTimeout(n.ctx, killRound)
		var load sync.WaitGroup
		counts := make([]int, killWorkers)
		for i := range killWorkers {
			load.Go(func() { counts[i] = n.podsUntil(ctx, client, fmt.Sprintf("r%d-w%d", rounds, i), int32(10000*(i+1))) })
		}
		kills += n.killUntil(ctx, random, victim)
		load.Wait()
		stop()
		for _, count := range counts {
			pods += count
		}
		n.awaitNetwork(client, true)
		n.awaitRuntime(client)
		n.removeAll(client)
		if left := n.leftovers(n.forgotten); len(left) != 0 {
			t.Fatalf("seed %d, round %d, killing %q: left behind:\n%s", seed, rounds, victim, strings.Join(left, "\n"))
		}
	}
	n.checkHistory()
	t.Logf("seed %d: %d rounds, %d kills, %d pods came up and were removed", seed, rounds, kills, pods)
	if kills == 0 || pods == 0 {
		t.Error("nothing was killed, or no pod ever came up")
	}
}

// awaitRuntime waits until crinetd reaches a containerd that was killed: it answers
// Status from memory, and connects again a moment later.
func (n *testNode) awaitRuntime(client *node.Client) {
	n.t.Helper()
	n.eventually("crinetd reaches containerd", func() bool {
		_, err := client.Runtime.ListPodSandbox(n.ctx, &runtimeapi.ListPodSandboxRequest{})
		return err == nil
	})
}

// forgotten takes those out of what is left that containerd alone can have left.
// Killed between making a network namespace and storing its path, containerd forgets it
// (RunPodSandbox in its sandbox_run.go): such a namespace has never been in a call to
// crinetd. And a RunPodSandbox of containerd that fails forgets the sandbox also when
// its DEL failed, since crinetd was away: the entry of containerd's own cache stays,
// while crinetd's sweeper frees the network.
func (n *testNode) forgotten(left []string) []string {
	n.t.Helper()
	crinetd, err := n.Log("crinetd")
	n.ok(err)
	containerd, err := n.Log("containerd")
	n.ok(err)
	return slices.DeleteFunc(left, func(what string) bool {
		if name, found := strings.CutPrefix(what, "network namespace "); found {
			return !strings.Contains(crinetd, name)
		}
		name, found := strings.CutPrefix(what, "containerd result crinet-")
		id, _, _ := strings.Cut(name, "-")
		return found && strings.Contains(containerd, `Failed to destroy network for sandbox \"`+id) && swept(crinetd, id)
	})
}

// swept says whether crinetd's log tells that the sweeper took a sandbox's attachment.
func swept(log, id string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "belongs to no sandbox") && strings.Contains(line, "sandbox="+id) {
			return true
		}
	}
	return false
}

// killUntil kills the victims at random moments and starts them again, until
// ctx ends. They run then.
func (n *testNode) killUntil(ctx context.Context, random *rand.Rand, victims []string) (kills int) {
	n.t.Helper()
	kill := map[string]func() error{"crinetd": n.KillCrinetd, "containerd": n.KillContainerd}
	start := map[string]func() error{
		"crinetd":    func() error { return n.StartCrinetd(n.ctx, cniFlags...) },
		"containerd": func() error { return n.StartContainerd(n.ctx) },
	}
	for {
		select {
		case <-ctx.Done():
			return kills
		case <-time.After(killPause + time.Duration(random.Int64N(int64(killSpread)))):
		}
		for _, victim := range victims {
			n.history.kills(victim)
			n.ok(kill[victim]())
			kills++
		}
		for _, victim := range victims {
			n.ok(start[victim]())
			n.history.started(victim)
		}
	}
}

// podsUntil runs and removes one pod after the other until ctx ends, and counts
// those that came up. It goes on after failures, and removes a pod until that
// worked, as a kubelet does.
func (n *testNode) podsUntil(ctx context.Context, client *node.Client, name string, port int32) (up int) {
	for i := 0; ctx.Err() == nil; i++ {
		config := n.portPodAt(fmt.Sprintf("%s-%d", name, i), port+int32(i%9000))
		runCtx, cancel := context.WithTimeout(n.ctx, killCall)
		pod, err := client.RunPod(runCtx, config)
		cancel()
		if err != nil {
			n.removeNamed(client, config.GetMetadata().GetName())
			time.Sleep(killRest)
			continue
		}
		up++
		for {
			stopCtx, cancel := context.WithTimeout(n.ctx, killCall)
			err := pod.StopAndRemove(stopCtx)
			cancel()
			if err == nil || n.ctx.Err() != nil {
				break
			}
			time.Sleep(killRest)
		}
	}
	return up
}

// removeNamed removes the sandbox that a failed call may have left at the runtime.
// What it cannot remove is removed by a later call, or at the end.
func (n *testNode) removeNamed(client *node.Client, name string) {
	ctx, cancel := context.WithTimeout(n.ctx, killCall)
	defer cancel()
	resp, err := client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.name": name},
	}})
	if err != nil {
		return
	}
	for _, sandbox := range resp.GetItems() {
		if _, err := client.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.GetId()}); err == nil {
			_, _ = client.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.GetId()})
		}
	}
}

// heapSpread is by how many bytes the heap may vary. It includes the few megabytes
// in which crinetd remembers the last pods.
const heapSpread = 8 << 20

// journalMost bounds the journal's files in bytes: a log of 4 MB, after which the bbolt
// file takes up the records, and that file with those of a round.
const journalMost = 6 << 20

// size is what crinetd and the node use while no pod runs.
type size struct {
	goroutines, fds, rss, journal, links, elements float64

	heap float64 // at which Go collects garbage: twice what is alive
}

// Pods that come and go in large numbers leave crinetd and the kernel as they
// were after the first of them. SOAK says for how long.
func TestPodsInALoop(t *testing.T) {
	t.Parallel()
	pods, workers := 40, 8
	if os.Getenv("SOAK") != "" {
		pods = 110
	}
	n, client := newRecordedNode(t)
	n.recordHistory(client)
	end := time.Now().Add(soak(t, 20*time.Second))
	var first, last size
	defer func() {
		if t.Failed() {
			t.Logf("last %+v", last)
		}
	}()
	rounds := 0
	for ; time.Now().Before(end) || rounds < 2; rounds++ {
		n.manyPods(client, pods, workers)
		n.clean()
		if rounds == 0 {
			first = n.size()
			continue
		}
		n.eventually(fmt.Sprintf("as small as after the first round: %+v", first), func() bool {
			last = n.size()
			return last.goroutines <= first.goroutines+5 && last.fds <= first.fds+5 &&
				last.links <= first.links && last.elements <= first.elements &&
				last.journal <= journalMost && last.rss <= 2*first.rss && last.heap <= first.heap+heapSpread
		})
	}
	n.checkHistory()
	t.Logf("%d rounds of %d pods with hostPorts; first %+v, last %+v", rounds, pods, first, last)
}

// manyPods has that many pods up at once, each with a hostPort, and removes them.
func (n *testNode) manyPods(client *node.Client, pods, workers int) {
	n.t.Helper()
	up := make([]*node.Pod, pods)
	each := func(do func(i int) error) {
		indices := make(chan int)
		var group sync.WaitGroup
		for range workers {
			group.Go(func() {
				for i := range indices {
					if err := do(i); err != nil {
						n.t.Error(err)
					}
				}
			})
		}
		for i := range pods {
			indices <- i
		}
		close(indices)
		group.Wait()
	}
	each(func(i int) (err error) {
		config := n.portPodAt(fmt.Sprintf("many-%d", i), int32(9000+i))
		config.PortMappings = append(config.PortMappings, &runtimeapi.PortMapping{
			Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: int32(9000 + i)})
		up[i], err = client.RunPod(n.ctx, config)
		return err
	})
	each(func(i int) error {
		if up[i] == nil {
			return nil
		}
		return up[i].StopAndRemove(n.ctx)
	})
}

// size measures.
func (n *testNode) size() size {
	n.t.Helper()
	metrics := n.metrics()
	journal := 0.0
	for _, name := range []string{"journal.db", "journal.db.log"} {
		info, err := os.Stat(n.Path("/var/lib/crinet/" + name))
		n.ok(err)
		journal += float64(info.Size())
	}
	links, err := n.Run(n.ctx, "ip", "-o", "link")
	n.ok(err)
	table, err := n.Run(n.ctx, "nft", "list", "table", "inet", "crinet")
	n.ok(err)
	return size{
		goroutines: metrics["go_goroutines"], fds: metrics["process_open_fds"], rss: metrics["process_resident_memory_bytes"],
		heap: metrics["go_memstats_next_gc_bytes"], journal: journal, links: float64(strings.Count(links, "\n")),
		elements: float64(strings.Count(table, "\n")),
	}
}

// metrics reads crinetd's metrics that have no labels.
func (n *testNode) metrics() map[string]float64 {
	n.t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.Path("/run/crinet/admin.sock"))
	}}
	req, err := http.NewRequestWithContext(n.ctx, http.MethodGet, "http://crinetd/metrics", nil)
	n.ok(err)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	n.ok(err)
	defer resp.Body.Close()
	values := make(map[string]float64)
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values
}
