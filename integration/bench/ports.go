package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

const (
	onePortLimit  = 1.03 // of the same pod without hostPorts
	manyPortLimit = 1.10

	// patience is how long one kind of pod may be run on one node; it sits out
	// the remaining rounds then.
	patience = 30 * time.Second
)

// portCounts are the hostPorts of the measured pods, mappingCounts those that
// are on the node besides.
var (
	portCounts    = []int{0, 1, 100}
	mappingCounts = []int{0, 2000, 10000}
)

// measureHostPorts measures pods with hostPorts, the package hostport, and what
// mappings cost the traffic.
func measureHostPorts(ctx context.Context, kit *node.Kit, o options, out io.Writer) (err error) {
	say(out, "measuring hostPorts: the package alone")
	if err := measurePackage(ctx, o, out); err != nil {
		return fmt.Errorf("measure the package hostport: %w", err)
	}
	mappers, err := startMappers(ctx, kit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeMappers(mappers)) }()
	g := grid{head: []string{"mappings", "hostPorts", "call", crinetMapper, "of the pod without", "target", "reached", iptablesMapper, nftablesMapper}}
	for _, mappings := range mappingCounts {
		say(out, "measuring hostPorts: pods on nodes with %d mappings", mappings)
		for _, m := range mappers {
			if err := m.load(ctx, mappings); err != nil {
				return fmt.Errorf("load %d mappings by %s: %w", mappings, m.name, err)
			}
		}
		cells, err := measurePortPods(ctx, mappers, o)
		if err != nil {
			return err
		}
		addPortRows(&g, mappings, cells)
	}
	if err := g.print(out); err != nil {
		return err
	}
	say(out, "measuring hostPorts: traffic")
	return measureTraffic(ctx, kit, mappers, o, out)
}

// kind is one kind of pod on one node.
type kind struct {
	mapper string
	ports  int
}

// cell is what was measured of one kind.
type cell struct {
	run, stop []float64 // in milliseconds
	spent     time.Duration
}

// measurePortPods runs pods of every kind in turn.
func measurePortPods(ctx context.Context, mappers []*mapper, o options) (map[kind]*cell, error) {
	cells := make(map[kind]*cell)
	for round := range 1 + o.portRounds {
		for i := range portCounts {
			ports := portCounts[(i+round)%len(portCounts)]
			for _, m := range mappers {
				k := kind{m.name, ports}
				if cells[k] == nil {
					cells[k] = new(cell)
				}
				// The first round is not counted, nor are all of the others'.
				if m.name != crinetMapper && round > max(o.portRounds/4, 1) || cells[k].spent > patience {
					continue
				}
				start := time.Now()
				t, err := m.cycle(ctx, fmt.Sprintf("ports-%d-%d", ports, round), ports)
				if err != nil {
					return nil, fmt.Errorf("%s: a pod with %d hostPorts: %w", m.name, ports, err)
				}
				if round > 0 || time.Since(start) > patience {
					cells[k].add(t)
				}
				cells[k].spent += time.Since(start)
			}
		}
	}
	return cells, nil
}

func (c *cell) add(t times) {
	c.run = append(c.run, millis(t.run))
	c.stop = append(c.stop, millis(t.stop))
}

// addPortRows adds the rows of one number of mappings.
func addPortRows(g *grid, mappings int, cells map[kind]*cell) {
	for _, call := range []string{"RunPodSandbox", "StopPodSandbox"} {
		of := func(c *cell) []float64 {
			if call == "RunPodSandbox" {
				return c.run
			}
			return c.stop
		}
		without := of(cells[kind{crinetMapper, 0}])
		for _, ports := range portCounts {
			ours := of(cells[kind{crinetMapper, ports}])
			cost, target, reached := "", "", ""
			if limit, ok := portLimit(ports); ok {
				ratio := median(ours) / median(without)
				low, high := medianRange(ratiosOf(ours, without))
				cost = fmt.Sprintf("× %.3f (%.3f to %.3f)", ratio, low, high)
				target, reached = fmt.Sprintf("≤ × %.2f", limit), verdict(ratio > limit)
			}
			g.add(fmt.Sprint(mappings), fmt.Sprint(ports), call, showMedian(ours), cost, target, reached,
				showMedian(of(cells[kind{iptablesMapper, ports}])), showMedian(of(cells[kind{nftablesMapper, ports}])))
		}
	}
}

func portLimit(ports int) (limit float64, ok bool) {
	switch ports {
	case 0:
		return 0, false
	case 1:
		return onePortLimit, true
	default:
		return manyPortLimit, true
	}
}

// showMedian says on how many values a median stands that are few.
func showMedian(values []float64) string {
	text := fmt.Sprintf("%.0f ms", median(values))
	if len(values) < 5 {
		text += fmt.Sprintf(" (n=%d)", len(values))
	}
	return text
}
