package integration_test

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// healMax is how long a broken mapping may be away on a busy machine. On an idle
// one it takes less than a tenth of that.
const healMax = 500 * time.Millisecond

// load is a set of clients that go on fetching a page, each time over a new
// connection.
type load struct {
	end     context.CancelFunc
	group   sync.WaitGroup
	mu      sync.Mutex
	fetches []fetch
}

// fetch is one request: when it began and how it ended.
type fetch struct {
	begin time.Time
	err   error
}

// startLoad fetches the page of a pod's hostPort until stop is called.
func (n *testNode) startLoad(from *node.Place, address string, port int32, want string) *load {
	ctx, cancel := context.WithCancel(n.ctx)
	l := &load{end: cancel}
	url := "http://" + net.JoinHostPort(address, fmt.Sprint(port)) + "/"
	const workers = 3
	for range workers {
		l.group.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				page, err := fetchOnce(ctx, from, url)
				if err == nil && !strings.HasPrefix(page, want+" ") {
					err = fmt.Errorf("%s is answered by %q, want %s", url, page, want)
				}
				if ctx.Err() == nil {
					l.mu.Lock()
					l.fetches = append(l.fetches, fetch{begin, err})
					l.mu.Unlock()
				}
			}
		})
	}
	n.t.Cleanup(func() { l.stop() })
	return l
}

func fetchOnce(ctx context.Context, from *node.Place, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return from.Get(ctx, url)
}

// since returns the requests that began after a moment, the earliest first.
func (l *load) since(moment time.Time) []fetch {
	l.mu.Lock()
	defer l.mu.Unlock()
	later := slices.DeleteFunc(slices.Clone(l.fetches), func(f fetch) bool { return f.begin.Before(moment) })
	slices.SortFunc(later, func(a, b fetch) int { return a.begin.Compare(b.begin) })
	return later
}

// stop ends the load and returns all of it.
func (l *load) stop() []fetch {
	l.end()
	l.group.Wait()
	return l.since(time.Time{})
}

// outage returns the time from the first failed request to the first request after
// the last failed one. ok is false while no such request has come.
func outage(fetches []fetch) (away time.Duration, ok bool) {
	var first, last time.Time
	for i, f := range fetches {
		if f.err == nil {
			continue
		}
		if first.IsZero() {
			first = f.begin
		}
		if i+1 == len(fetches) {
			return 0, false
		}
		last = fetches[i+1].begin
	}
	return last.Sub(first), len(fetches) > 0
}

// sortedLines makes listings of a table comparable: chains are listed in the order in
// which they were made.
func sortedLines(text string) string {
	return strings.Join(slices.Sorted(strings.Lines(text)), "")
}

// Whatever others do to the table, crinetd puts it right at once, also under load.
func TestHostPortTableHeals(t *testing.T) {
	t.Parallel()
	const rounds = 5
	n, client := newDualNode(t)
	n.servePod(client, "web", bothPorts("", 8080)...)
	whole := n.table()
	load := n.startLoad(n.Outside, node.NodeIPv4, 8080, "web")
	for _, command := range []string{
		"flush ruleset",
		"delete table inet crinet",
		"delete element inet crinet ports4 { tcp . 8080 }",
		"flush chain inet crinet hostports",
	} {
		n.awaitCalm()
		var times []time.Duration
		for range rounds {
			times = append(times, n.breakTable(load, command))
		}
		slices.Sort(times)
		t.Logf("nft %s: away for %v, median of %d, at most %v", command, times[rounds/2], rounds, times[rounds-1])
		if times[rounds-1] > healMax {
			t.Errorf("nft %s: the mapping was away for %v, want less than %v", command, times[rounds-1], healMax)
		}
		n.awaitOK(answerTimeout, func() error {
			if table := n.table(); sortedLines(table) != sortedLines(whole) {
				return fmt.Errorf("after nft %s the table is\n%s\nbefore it was\n%s", command, table, whole)
			}
			return nil
		})
		n.answers(n.Outside, node.NodeIPv6, 8080, "web")
	}
	t.Logf("%d requests", len(load.stop()))
}

// awaitCalm waits until crinetd heals without a pause again: it pauses longer each
// time while the table is broken again and again.
func (n *testNode) awaitCalm() {
	const calm = 2 * time.Second
	time.Sleep(calm)
}

// breakTable breaks the table once, and returns how long the mapping was away.
func (n *testNode) breakTable(l *load, command string) (away time.Duration) {
	n.t.Helper()
	const metric = "crinet_hostport_heals_total"
	before, err := n.Metric(n.ctx, metric)
	n.ok(err)
	began := time.Now()
	_, err = n.Run(n.ctx, "nft", strings.Fields(command)...)
	n.ok(err)
	n.awaitOK(answerTimeout, func() error {
		after, err := n.Metric(n.ctx, metric)
		if err == nil && after <= before {
			err = fmt.Errorf("%s is %v, as before nft %s", metric, after, command)
		}
		return err
	})
	healed := time.Now()
	n.awaitOK(answerTimeout, func() error {
		fetches := l.since(began)
		var ok bool
		if away, ok = outage(fetches); !ok || !fetches[len(fetches)-1].begin.After(healed) {
			return fmt.Errorf("the mapping is not back %v after nft %s", time.Since(began), command)
		}
		return nil
	})
	return away
}

// A mapping goes on working while crinetd is dead and when it starts again. The
// mappings of pods that were removed meanwhile are gone then.
func TestHostPortsOutliveCrinetd(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	n.servePod(client, "stays", bothPorts("", 8080)...)
	n.servePod(client, "removed", bothPorts("", 8081)...)
	n.servePod(client, "half", bothPorts("", 8082)...)
	ids := make(map[string]string)
	states, err := n.PodStates(n.ctx)
	n.ok(err)
	for _, state := range states {
		ids[state.Name] = state.SandboxID
	}
	load := n.startLoad(n.Outside, node.NodeIPv4, 8080, "stays")
	local := n.startLoad(n.Place, "127.0.0.1", 8080, "stays")
	n.ok(n.KillCrinetd())

	// containerd keeps a pod whose network it cannot remove, ...
	for _, name := range []string{"removed", "half"} {
		if _, err := n.Crictl(n.ctx, node.ContainerdSocket, "rmp", "--force", ids[name]); err == nil {
			t.Errorf("containerd removed pod %s while crinetd was away", name)
		}
	}
	// ... unless somebody gives it another network plugin.
	n.ok(n.WriteFile(n.RuntimeConfDir()+"/10-mynet.conf", seedBridge))
	n.sh("rm %s/%s", n.RuntimeConfDir(), crinetConf)
	n.awaitOK(cleanTimeout, func() error {
		_, err := n.Crictl(n.ctx, node.ContainerdSocket, "rmp", "--force", ids["removed"])
		return err
	})
	if table := n.table(); !strings.Contains(table, "default/removed") {
		t.Error("the mapping of the removed pod was gone before crinetd came back: nothing is shown")
	}
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.awaitOK(answerTimeout, func() error {
		if table := n.table(); strings.Contains(table, "default/removed") {
			return fmt.Errorf("the mapping of the removed pod is still there:\n%s", table)
		}
		return nil
	})
	_, err = n.Crictl(n.ctx, node.ContainerdSocket, "rmp", "--force", ids["half"])
	n.ok(err)
	if table := n.table(); strings.Contains(table, "default/half") {
		t.Errorf("the mapping of the pod that was removed again is still there:\n%s", table)
	}
	n.admitted(client, "heir", append(bothPorts("", 8081), bothPorts("", 8082)...)...)
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	for _, fetches := range [][]fetch{load.stop(), local.stop()} {
		failed := slices.DeleteFunc(slices.Clone(fetches), func(f fetch) bool { return f.err == nil })
		t.Logf("%d requests through the mapping that stays", len(fetches))
		if len(failed) > 0 || len(fetches) == 0 {
			t.Errorf("%d of %d requests failed through the mapping that stays, the first: %v", len(failed), len(fetches), failed)
		}
	}
	n.answers(n.Outside, node.NodeIPv4, 8080, "stays")
}
