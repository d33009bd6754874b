// Command bench measures what crinetd costs. It starts a node with containerd in
// namespaces of its own and does everything twice in one run, alternating call
// by call: directly at containerd, whose own CNI networks the pod, and through
// crinetd. Both sides have one containerd, one image, the same plugins with the
// same configuration; containerd tells them apart by the pod's runtime handler.
//
// HostPorts are compared with the portmap plugin and its two backends, on nodes
// side by side.
//
// It prints tables with the targets, and whether they were reached, and draws a pod's
// start and stop, phase by phase. Run it by `sudo make bench`; -rows names what is to
// be measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/integration/command"
	"github.com/crinet-project/crinet/integration/node"
)

// timeout bounds one run.
const timeout = 30 * time.Minute

func main() { command.Main("bench", run) }

// options say how much is measured.
type options struct {
	rounds int // pairs of pods
	pods   int // pods that are there when crinetd's memory is read
	calls  int // pairs of calls that no hook sees
	// portRounds are rounds of pods with hostPorts.
	portRounds int
	bursts     []int // pods that are asked for at once
	// most is how many rounds a burst has at most.
	most   int
	steady time.Duration // how long a kubelet polls
	plot   string        // where the plot of a pod's phases is written
	rows   map[string]bool
}

// burstRounds is how often a burst of that many pods is run: large ones take long.
func (o options) burstRounds(pods int) int { return min(o.most, max(300/pods, 2)) }

// containers is how many containers the answer of ListContainers has.
const containers = 500

// The rows that are no network of [networks].
const (
	pluginRow = "plugin"
	phasesRow = "phases"
	burstRow  = "burst"
	crowdRow  = "crowd"
	masqRow   = "masquerade"
	portsRow  = "hostports"
)

// allRows names the rows in their order.
func allRows() []string {
	rows := []string{pluginRow}
	for _, w := range networks() {
		rows = append(rows, w.row)
	}
	return append(rows, phasesRow, burstRow, crowdRow, masqRow, portsRow)
}

func parse(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := options{calls: 1500, portRounds: 16, bursts: []int{30, 100, 250}, most: 4, steady: time.Minute, rows: make(map[string]bool)}
	flags.IntVar(&o.rounds, "rounds", 60, "pairs of pods, one run directly and one through crinetd")
	flags.IntVar(&o.pods, "pods", 110, "pods that are there when crinetd's memory is read")
	flags.StringVar(&o.plot, "plot", "docs/benchmarks-pod.svg", "write the plot of a pod's phases to this file, unless empty or with -short")
	rows := flags.String("rows", strings.Join(allRows(), ","), "measure only these")
	short := flags.Bool("short", false, "a tenth of all, to see whether it works")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 0 || o.rounds < 1 || o.pods < 1 {
		return o, errors.New("want -rounds and -pods above 0 and no arguments")
	}
	for row := range strings.SplitSeq(*rows, ",") {
		if !slices.Contains(allRows(), row) {
			return o, fmt.Errorf("there is no row %q; there are %s", row, strings.Join(allRows(), ", "))
		}
		o.rows[row] = true
	}
	if *short {
		o.rounds, o.pods, o.calls, o.portRounds = max(o.rounds/10, 1), max(o.pods/10, 1), o.calls/10, 4
		o.bursts, o.most, o.steady, o.plot = []int{10, burstOfLimits}, 2, 10*time.Second, ""
	}
	return o, nil
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	kit, err := node.NewKit(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kit.Close()) }()
	if err := kit.BuildCrinet(ctx, false); err != nil {
		return err
	}
	if err := describeMachine(out, kit); err != nil {
		return err
	}
	if err := measurePath(ctx, kit, o, out); err != nil {
		return err
	}
	if o.rows[masqRow] {
		say(out, "measuring connections through masquerade")
		if err := measureMasquerade(ctx, o, out); err != nil {
			return fmt.Errorf("measure masquerade: %w", err)
		}
	}
	if o.rows[portsRow] {
		return measureHostPorts(ctx, kit, o, out)
	}
	return nil
}

// step measures one row.
type step struct {
	row, what string
	do        func(context.Context, *sides, options, *table) error
}

// method is a method as a step takes it: its context first.
func method(do func(*sides, context.Context, options, *table) error) func(context.Context, *sides, options, *table) error {
	return func(ctx context.Context, s *sides, o options, t *table) error { return do(s, ctx, o, t) }
}

// steps are the rows that need both ways to a pod.
func steps(o options) []step {
	all := []step{{pluginRow, "the plugin's start", method((*sides).shim)}}
	for _, w := range networks() {
		all = append(all, step{w.row, fmt.Sprintf("%d pairs of pods: %s", o.rounds, w.what),
			func(ctx context.Context, s *sides, o options, t *table) error { return w.measure(ctx, s, o, t) }})
	}
	return append(all,
		step{phasesRow, "a pod's phases", method((*sides).phases)},
		step{burstRow, fmt.Sprintf("bursts of %v pods", o.bursts), method((*sides).bursts)},
		step{crowdRow, fmt.Sprintf("%d pods: memory, a kubelet's polling, calls with %d containers", o.pods, containers), method((*sides).crowd)})
}

// measurePath measures the way of calls and pods.
func measurePath(ctx context.Context, kit *node.Kit, o options, out io.Writer) (err error) {
	wanted := slices.DeleteFunc(steps(o), func(s step) bool { return !o.rows[s.row] })
	if len(wanted) == 0 {
		return nil
	}
	s, err := startSides(ctx, kit)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, errors.New(s.node.LogTails(20)))
		}
		err = errors.Join(err, s.node.Close())
	}()
	t := newTable()
	for _, step := range wanted {
		say(out, "measuring %s", step.what)
		if err := step.do(ctx, s, o, t); err != nil {
			// What has been measured is not lost.
			return errors.Join(fmt.Errorf("measure %s: %w", step.row, err), t.grid.print(out))
		}
	}
	return t.grid.print(out)
}

// say tells what is going on.
func say(out io.Writer, format string, args ...any) {
	fmt.Fprintf(out, "%s %s ...\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
