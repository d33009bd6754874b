package cni

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// At most so many are in at once; the others come in the order in which they
// asked, and one that gives up is skipped.
func TestLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLane("ADD", 2)
		first, err := l.enter(t.Context(), l.turn(false))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.enter(t.Context(), l.turn(false)); err != nil { // hangs, and never leaves
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.enter(ctx, l.turn(false)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "--cni-max-chains") {
			t.Errorf("a third came in: %v", err)
		}
		order := make(chan int, 3)
		for i := range 3 {
			go func() {
				leave, err := l.enter(t.Context(), l.turn(false))
				if err != nil {
					t.Error(err)
					return
				}
				order <- i
				leave()
			}()
			synctest.Wait() // until it waits
		}
		if len(order) != 0 {
			t.Error("one more came in than may")
		}
		first()
		for want := range 3 {
			if got := <-order; got != want {
				t.Errorf("%d came in when it was %d's turn", got, want)
			}
		}
	})
}

func TestLaneWithoutBound(t *testing.T) {
	l := newLane("ADD", 0)
	for range 100 {
		if _, err := l.enter(t.Context(), l.turn(false)); err != nil {
			t.Fatal(err)
		}
	}
}

// A chain that hangs gives its place back after a while, once.
func TestHungChainGivesItsPlaceBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const most = 8
		l := newLane("DEL", most)
		var stuck []func()
		for range most {
			leave, err := l.enter(t.Context(), l.turn(false))
			if err != nil {
				t.Fatal(err)
			}
			stuck = append(stuck, leave)
		}
		begun := time.Now()
		leave, err := l.enter(t.Context(), l.turn(false))
		if err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begun); waited != patience {
			t.Errorf("it waited for %v behind stuck ones, want %v", waited, patience)
		}
		for _, end := range stuck {
			end()
		}
		leave()
		if load := l.load(); load != (Load{Limit: most}) {
			t.Errorf("when all have left: %+v", load)
		}
	})
}

// hungRunner hangs in the plugins' verbs that it names.
type hungRunner struct{ verb string }

func (r hungRunner) Run(ctx context.Context, _ string, _ []byte, env []string) (stdout, stderr []byte, err error) {
	if slices.Contains(env, "CNI_COMMAND="+r.verb) {
		<-ctx.Done()
		return nil, nil, context.Cause(ctx)
	}
	return []byte(`{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.2/24"}]}`), nil, nil
}

// Chains that hang in one verb hold up no chain of another verb.
func TestVerbsHaveLanesOfTheirOwn(t *testing.T) {
	t.Parallel()
	verbs := map[string]func(*Plugin, context.Context, *Attachment) error{
		"ADD":   func(p *Plugin, ctx context.Context, a *Attachment) error { _, err := p.SetUpPod(ctx, a); return err },
		"DEL":   (*Plugin).TearDownPod,
		"CHECK": (*Plugin).CheckPod,
	}
	for hung := range verbs {
		t.Run(hung, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, conflist("1.0.0", "good"))
			synctest.Test(t, func(t *testing.T) {
				p := New(Config{
					BinDirs: []string{b.dir}, CacheDir: b.path("cache"), Timeout: time.Minute, MaxChains: 2, Runner: hungRunner{hung},
				})
				a := &Attachment{ContainerID: "id", NetNS: "/n", IfName: "eth0", Network: "net", ConfList: b.network.ConfList}
				ctx, cancel := context.WithCancel(t.Context())
				var group sync.WaitGroup
				for range 5 {
					group.Go(func() {
						if verbs[hung](p, ctx, a) == nil {
							t.Error("a hung chain went well")
						}
					})
				}
				synctest.Wait() // two hang, three wait
				begun := time.Now()
				for verb, run := range verbs {
					if verb == hung {
						continue
					}
					if err := run(p, t.Context(), a); err != nil {
						t.Error(err)
					}
				}
				if waited := time.Since(begun); waited != 0 {
					t.Errorf("the other verbs waited for %v", waited)
				}
				cancel()
				group.Wait()
			})
		})
	}
}
