package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	burstLimit    = 0.75 // of the direct way's time, with burstOfLimits pods
	burstOfLimits = 100
	addP50Limit   = 5 // of ADD inside crinetd, in milliseconds
	addP99Limit   = 20
)

// bursts asks for many pods at once, both ways in turn, and then stops them all at
// once. ADD's times inside crinetd are those of its own steps.
func (s *sides) bursts(ctx context.Context, o options, t *table) error {
	w := networks()[0]
	if err := s.use(ctx, w); err != nil {
		return err
	}
	for _, pods := range o.bursts {
		var up, gone series
		var adds []float64
		for round := range o.burstRounds(pods) {
			ups, downs := make([]time.Duration, 2), make([]time.Duration, 2)
			for _, i := range []int{round % 2, 1 - round%2} {
				took, err := s.burst(ctx, s.ways(w)[i], fmt.Sprintf("burst-%d-%d-%d", pods, round, i), pods, i == through)
				if err != nil {
					return fmt.Errorf("%d pods at once: %w", pods, err)
				}
				ups[i], downs[i] = took.up, took.gone
				adds = append(adds, took.adds...)
			}
			up.add(ups...)
			gone.add(downs...)
		}
		limit := 0.0
		if pods == burstOfLimits {
			limit = burstLimit
		}
		t.addRatio(fmt.Sprintf("%d pods at once, up", pods), up, limit)
		t.addRatio(fmt.Sprintf("%d pods at once, stopped", pods), gone, 0)
		slices.Sort(adds)
		p50, p99 := adds[len(adds)/2], adds[len(adds)*99/100]
		if pods == burstOfLimits {
			t.addValue(fmt.Sprintf("ADD inside crinetd, p50 of %d at once", pods), p50, addP50Limit, "ms")
			t.addValue(fmt.Sprintf("ADD inside crinetd, p99 of %d at once", pods), p99, addP99Limit, "ms")
		} else {
			t.addPlain(fmt.Sprintf("ADD inside crinetd, %d at once", pods), fmt.Sprintf("p50 %.1f ms, p99 %.1f ms", p50, p99))
		}
	}
	return nil
}

// burstTook is what one burst took.
type burstTook struct {
	up, gone time.Duration
	adds     []float64 // in milliseconds, of pods through crinetd
}

// burst runs the pods at once and waits for all, and stops them likewise.
func (s *sides) burst(ctx context.Context, by way, name string, pods int, ours bool) (took burstTook, err error) {
	ids := make([]string, pods)
	took.up, err = atOnce(ctx, pods, func(ctx context.Context, i int) (err error) {
		ids[i], _, err = runPod(ctx, s.node, by.client, s.node.PodConfig(fmt.Sprintf("%s-%d", name, i)), by.handler)
		return err
	})
	if err != nil {
		return took, err
	}
	if ours {
		if took.adds, err = s.adds(ctx); err != nil {
			return took, err
		}
		if len(took.adds) != pods {
			return took, fmt.Errorf("crinetctl shows %d pods, want %d", len(took.adds), pods)
		}
	}
	took.gone, err = atOnce(ctx, pods, func(ctx context.Context, i int) error {
		_, err := stopPod(ctx, by.client, ids[i])
		return err
	})
	if err != nil {
		return took, err
	}
	_, err = atOnce(ctx, pods, func(ctx context.Context, i int) error { return removePod(ctx, by.client, ids[i]) })
	return took, err
}

// atOnce begins all at the same moment and waits for the last.
func atOnce(ctx context.Context, n int, do func(ctx context.Context, i int) error) (time.Duration, error) {
	group, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	err := group.Wait()
	return time.Since(start), err
}

// adds returns how long ADD took inside crinetd for each pod, in milliseconds.
func (s *sides) adds(ctx context.Context) ([]float64, error) {
	states, err := s.node.PodStates(ctx)
	if err != nil {
		return nil, err
	}
	var all []float64
	for _, state := range states {
		add := 0.0
		for _, step := range state.Steps {
			if step.Step == "netns" || step.Step == "plugin" {
				add += 1000 * step.Seconds
			}
		}
		all = append(all, add)
	}
	return all, nil
}
