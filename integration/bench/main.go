// Command bench measures what crinetd costs. It starts a node with containerd in
// namespaces of its own and does everything twice in one run, alternating call
// by call: directly at containerd, whose own CNI networks the pod, and through
// crinetd. Both sides have one containerd, one image, the same plugins with the
// same configuration; containerd tells them apart by the pod's runtime handler.
//
// HostPorts are compared with the portmap plugin and its two backends, on nodes
// side by side.
//
// It prints tables with the targets, and whether they were reached. Run it by
// `sudo make bench`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// timeout bounds one run.
const timeout = 20 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options say how much is measured.
type options struct {
	rounds int // pairs of pods
	pods   int // pods that are there when crinetd's memory is read
	calls  int // pairs of calls that no hook sees
	// portRounds are rounds of pods with hostPorts.
	portRounds int
	// only is the part that is measured, all if empty.
	only string
}

// containers is how many containers the answer of ListContainers has.
const containers = 500

func parse(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	o := options{calls: 3000, portRounds: 48}
	flags.IntVar(&o.rounds, "rounds", 150, "pairs of pods, one run directly and one through crinetd")
	flags.IntVar(&o.pods, "pods", 100, "pods that are there when crinetd's memory is read")
	flags.StringVar(&o.only, "only", "", "measure only this: plugin, pods, calls or hostports")
	short := flags.Bool("short", false, "a tenth of all, to see whether it works")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 0 || o.rounds < 1 || o.pods < 1 {
		return o, errors.New("want -rounds and -pods above 0 and no arguments")
	}
	if *short {
		o.rounds, o.pods, o.calls, o.portRounds = max(o.rounds/10, 1), max(o.pods/10, 1), o.calls/10, 4
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
	if o.only != "hostports" {
		if err := measurePath(ctx, kit, o, out); err != nil {
			return err
		}
	}
	if o.only == "" || o.only == "hostports" {
		return measureHostPorts(ctx, kit, o, out)
	}
	return nil
}

// measurePath measures the way of calls and pods.
func measurePath(ctx context.Context, kit *node.Kit, o options, out io.Writer) (err error) {
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
	steps := []struct {
		name, what string
		do         func(context.Context, options, *table) error
	}{
		{"plugin", "the plugin's start", s.shim},
		{"pods", fmt.Sprintf("%d pairs of pods", o.rounds), s.pods},
		{"calls", fmt.Sprintf("calls with %d pods and %d containers", o.pods, containers), s.crowd},
	}
	for _, step := range steps {
		if o.only != "" && o.only != step.name {
			continue
		}
		say(out, "measuring %s", step.what)
		if err := step.do(ctx, o, t); err != nil {
			return fmt.Errorf("measure %s: %w", step.what, err)
		}
	}
	return t.grid.print(out)
}

// say tells what is going on.
func say(out io.Writer, format string, args ...any) {
	fmt.Fprintf(out, "%s %s ...\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
