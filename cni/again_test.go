package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/crinet-project/crinet/cni/pluginexec"
)

// agent is a network's agent that admits one ADD in so many, and asks the others to try
// again later. Its plugin has no binary: it runs on the clock of the test.
type agent struct {
	every time.Duration // between two ADDs that it admits
	slow  func(running int) time.Duration

	mu      sync.Mutex
	next    time.Time
	running int
	most    int      // that ran at once
	calls   []string // VERB and container
	added   []string // containers, in the order in which they were admitted
	fail    string   // text of a CNI error without a code that passes; empty: none
}

func (g *agent) Run(ctx context.Context, _ string, _ []byte, env []string) (stdout, stderr []byte, err error) {
	verb, id := valueOf(env, "CNI_COMMAND"), valueOf(env, "CNI_CONTAINERID")
	g.mu.Lock()
	g.calls = append(g.calls, verb+" "+id)
	if verb != "ADD" {
		g.mu.Unlock()
		return nil, nil, nil
	}
	g.running++
	g.most = max(g.most, g.running)
	took := 10 * time.Millisecond
	if g.slow != nil {
		took = g.slow(g.running)
	}
	now := time.Now()
	refused := now.Before(g.next)
	if !refused {
		g.next = now.Add(g.every)
		g.added = append(g.added, id)
	}
	fail := g.fail
	g.mu.Unlock()
	time.Sleep(took)
	g.mu.Lock()
	g.running--
	g.mu.Unlock()
	switch {
	case fail != "":
		return fmt.Appendf(nil, `{"cniVersion":"1.0.0","code":100,"msg":%q}`, fail), nil, exitError()
	case refused:
		return []byte(`{"cniVersion":"1.0.0","code":11,"msg":"the agent is busy"}`), nil, exitError()
	}
	return []byte(`{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.2/24"}]}`), nil, nil
}

func exitError() error { return &pluginexec.Error{Path: "good", Kind: pluginexec.ErrExit, ExitCode: 1} }

// crowd is a plugin whose network has that agent. It must be made in the bubble of the
// test's clock.
func (b *bench) crowd(g *agent) *Plugin {
	return New(Config{
		BinDirs: []string{b.dir}, CacheDir: b.path("cache"), Timeout: 2 * time.Minute, MaxChains: 32, Runner: g, Passing: []string{"11", "slow down"},
	})
}

func (b *bench) pod(id string) *Attachment {
	return &Attachment{ContainerID: id, NetNS: "/n", IfName: "eth0", Network: "net", ConfList: b.network.ConfList}
}

// 150 pods at once on a plugin that admits one in two seconds: each that has the time
// gets its network, in the order in which they came, those that are first before all
// others, and none is undone but in place.
func TestBusyAgent(t *testing.T) {
	t.Parallel()
	const pods, every, deadline = 150, 2 * time.Second, 4 * time.Minute
	g := &agent{every: every}
	b := newBench(t, conflist("1.0.0", "good"))
	synctest.Test(t, func(t *testing.T) {
		p := b.crowd(g)
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		var mu sync.Mutex
		var done []string
		var group sync.WaitGroup
		for i := range pods {
			a := b.pod(fmt.Sprintf("pod-%03d", i))
			if a.First = i >= pods-5; a.First {
				a.ContainerID = "first-" + a.ContainerID
			}
			group.Go(func() {
				_, err := p.SetUpPod(ctx, a)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					done = append(done, a.ContainerID)
				} else if left := time.Until(deadlineOf(ctx)); left > 3*every {
					t.Errorf("%s failed %v before its deadline: %v", a.ContainerID, left, err)
				} else if !strings.Contains(err.Error(), "busy") {
					t.Errorf("the error does not say what was waited for: %v", err)
				}
			})
			time.Sleep(time.Millisecond) // so that there is an order
		}
		group.Wait()
		if least := int(deadline/every) * 3 / 4; len(done) < least {
			t.Errorf("%d pods have a network in %v, want %d or more", len(done), deadline, least)
		}
		if load, retries := p.Pressure(); load.Waiting != 0 || load.Running != 0 || load.Limit > 8 || retries == 0 {
			t.Errorf("pressure: %+v, %d retries", load, retries)
		}
		// The first few came in before anybody knew that the agent is busy.
		ordered := done[slices.IndexFunc(done, func(id string) bool { return strings.HasPrefix(id, "first") }):]
		for i, id := range ordered {
			if first := strings.HasPrefix(id, "first"); first != (i < 5) {
				t.Fatalf("the order is %q", done)
			}
		}
		// Two that try at the same moment may change places.
		for i, id := range slices.Sorted(slices.Values(ordered[5:])) {
			if at := slices.Index(ordered[5:], id); at > i+2 || at < i-2 {
				t.Errorf("%s is the %d., not the %d.: the order is %q", id, at, i, done)
			}
		}
	})
	// Each ADD that was refused has its DEL, in place.
	adds, dels := map[string]int{}, map[string]int{}
	for _, call := range g.calls {
		verb, id, _ := strings.Cut(call, " ")
		if verb == "ADD" {
			adds[id]++
		} else {
			dels[id]++
		}
	}
	for _, id := range g.added {
		if adds[id] != dels[id]+1 {
			t.Errorf("%s: %d ADDs, %d DELs", id, adds[id], dels[id])
		}
	}
}

func deadlineOf(ctx context.Context) time.Time {
	deadline, _ := ctx.Deadline()
	return deadline
}

// The limit falls while the plugin becomes slow with each chain, and rises again.
func TestLimitFollowsThePlugin(t *testing.T) {
	t.Parallel()
	g := &agent{slow: func(running int) time.Duration { return time.Duration(running*running) * 50 * time.Millisecond }}
	b := newBench(t, conflist("1.0.0", "good"))
	synctest.Test(t, func(t *testing.T) {
		p := b.crowd(g)
		run := func(pods int) {
			var group sync.WaitGroup
			for i := range pods {
				group.Go(func() {
					if _, err := p.SetUpPod(t.Context(), b.pod(fmt.Sprint(i))); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
		}
		run(1) // how long it takes undisturbed
		run(200)
		if load, _ := p.Pressure(); load.Limit >= 16 {
			t.Errorf("the limit is %d while chains slow each other down", load.Limit)
		}
		g.slow = nil
		for range 40 {
			run(20)
		}
		if load, _ := p.Pressure(); load.Limit != 32 {
			t.Errorf("the limit is %d when the plugin is quick again, want that of the flag", load.Limit)
		}
	})
}

// What is tried again, and what is not.
func TestWhatPasses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fail     string
		removals int
		tries    int
	}{
		{"no such bridge", 0, 1},
		{"API server: slow down, please", 0, 2},
		{"no IP addresses available in range set: 10.0.0.2-10.0.0.254", 0, 1},
		{"no IP addresses available in range set: 10.0.0.2-10.0.0.254", 1, 2},
	} {
		g := &agent{fail: tt.fail}
		b := newBench(t, conflist("1.0.0", "good"))
		synctest.Test(t, func(t *testing.T) {
			p := b.crowd(g)
			p.config.Removals = func() int { return tt.removals }
			go func() {
				time.Sleep(20 * time.Millisecond)
				g.mu.Lock()
				defer g.mu.Unlock()
				g.fail = ""
			}()
			_, err := p.SetUpPod(t.Context(), b.pod("a"))
			if (err == nil) != (tt.tries > 1) {
				t.Errorf("%s, %d removals: %v", tt.fail, tt.removals, err)
			}
			if adds := len(slices.DeleteFunc(slices.Clone(g.calls), func(c string) bool { return c != "ADD a" })); adds != tt.tries {
				t.Errorf("%s, %d removals: %d ADDs, want %d", tt.fail, tt.removals, adds, tt.tries)
			}
			time.Sleep(time.Second) // until the network is mended in any case
		})
	}
}

// An ADD that fails for want of addresses has the one that a DEL frees meanwhile.
func TestAddressOfAPodThatGoes(t *testing.T) {
	t.Parallel()
	g := &agent{fail: noAddresses}
	b := newBench(t, conflist("1.0.0", "good"))
	synctest.Test(t, func(t *testing.T) {
		p := b.crowd(g)
		leave, err := p.del.enter(t.Context(), p.del.turn(false))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(300 * time.Millisecond)
			g.mu.Lock()
			g.fail = ""
			g.mu.Unlock()
			leave()
		}()
		if _, err := p.SetUpPod(t.Context(), b.pod("a")); err != nil {
			t.Error(err)
		}
	})
}

// A pod whose caller has no time, whose DEL fails or whose error does not pass gets the
// plugin's words.
func TestNoMoreTries(t *testing.T) {
	t.Parallel()
	g := &agent{fail: "slow down"}
	b := newBench(t, conflist("1.0.0", "good"))
	synctest.Test(t, func(t *testing.T) {
		p := b.crowd(g)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := p.SetUpPod(ctx, b.pod("a"))
		if err == nil || !strings.Contains(err.Error(), "slow down") || !strings.Contains(err.Error(), "crinetd tried") || ctx.Err() != nil {
			t.Errorf("SetUpPod = %v, %v; want the plugin's words before the deadline", err, ctx.Err())
		}
		cancelled, stop := context.WithCancelCause(t.Context())
		time.AfterFunc(5*time.Second, func() { stop(errors.New("the caller left")) })
		if _, err := p.SetUpPod(cancelled, b.pod("b")); err == nil || !strings.Contains(err.Error(), "slow down") {
			t.Errorf("SetUpPod = %v for a caller that left", err)
		}
		// Without a deadline there are two minutes, --cni-timeout.
		began := time.Now()
		if _, err := p.SetUpPod(t.Context(), b.pod("c")); err == nil || time.Since(began) > 2*time.Minute {
			t.Errorf("SetUpPod = %v after %v", err, time.Since(began))
		}
	})
}

// The errors keep their codes: the runtime learns that the error passes.
func TestCodeOutlivesTheTries(t *testing.T) {
	t.Parallel()
	g := &agent{every: time.Hour, next: time.Now().Add(24 * 365 * 100 * time.Hour)}
	b := newBench(t, conflist("1.0.0", "good"))
	synctest.Test(t, func(t *testing.T) {
		p := b.crowd(g)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := p.SetUpPod(ctx, b.pod("a"))
		var said interface{ Error() string }
		if !errors.As(err, &said) || !p.passes(err) {
			t.Errorf("SetUpPod = %v, want code 11", err)
		}
		if text, err := json.Marshal(g.calls[:2]); err != nil || string(text) != `["ADD a","DEL a"]` {
			t.Errorf("the calls begin with %s", text)
		}
	})
}
