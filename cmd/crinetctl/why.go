package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

const whyHelp = `why tells the story of a pod's network: who asked for it, which network it got and
why that one, what each step and each plugin took and said, whether its parts stand
now, and what to do if not.

POD is the pod's name, namespace/name, its uid, or the first four or more characters
of its sandbox's id. Pods that were refused and pods that are gone are told of as
well, as long as they are among the last 1,000 operations. Without POD, the pods of
this node that failed last are listed.

Where no crinetd answers, the story is told from the files that it left in
--state-dir.

Exit codes: 0 when the pod's network stands, or was removed; 1 when something failed,
does not stand, or is still under way; 2 for an error in the command line, a pod that
nobody knows, and a name that several pods have: they are listed.`

// whyOptions are the flags of why.
type whyOptions struct {
	*options
	stateDir   string
	all, watch bool
}

// newWhy makes the command why.
func newWhy(o *options) *cobra.Command {
	w := &whyOptions{options: o}
	c := &cobra.Command{
		Use:   "why [POD]",
		Short: "Tell why a pod has no network, or how it got it: steps, plugins, what stands now, what to do",
		Long:  whyHelp,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("why takes one POD, got %q", args)}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			pod := ""
			if len(args) == 1 {
				pod = args[0]
			}
			switch {
			case w.watch:
				return w.follow(c.Context(), pod)
			case pod == "":
				return w.failures(c.Context())
			}
			return w.why(c.Context(), pod)
		},
	}
	c.Flags().StringVar(&w.stateDir, "state-dir", "/var/lib/crinet", "crinetd's --state-dir, the `DIR` that is read where no crinetd answers")
	c.Flags().BoolVar(&w.all, "all", false, "show each sandbox of the pod and each operation in full, not the newest alone")
	c.Flags().BoolVarP(&w.watch, "watch", "w", false, "print operations as they end, until interrupted")
	return c
}

// why tells of one pod.
func (w *whyOptions) why(ctx context.Context, pod string) error {
	story, err := w.client().Why(ctx, pod)
	if errors.Is(err, admin.ErrNoAnswer) {
		var told *why.Story
		if told, err = w.offline(ctx, pod, err); told != nil {
			story = *told
		}
	}
	if errors.Is(err, admin.ErrNotFound) || errors.Is(err, why.ErrUnknown) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if err := w.print(story, func() error { return w.printStory(&story, time.Now()) }); err != nil {
		return err
	}
	switch {
	case len(story.Candidates) > 0:
		return usageError{fmt.Errorf("%q is more than one pod: give namespace/name or a sandbox's id", pod)}
	case !story.OK():
		return fmt.Errorf("the network of pod %s: %s", harmless(story.Pod.String()), story.Verdict)
	}
	return nil
}

// offline tells of a pod without crinetd.
func (w *whyOptions) offline(ctx context.Context, pod string, noAnswer error) (*why.Story, error) {
	story, err := why.Tell(ctx, why.Sources{
		Told: w.stateDir,
		Find: func(q recorder.Query) ([]recorder.Operation, error) { return recorder.Read(w.stateDir, q) },
		Inspect: func(ctx context.Context, r *journal.Record) []inspect.Finding {
			return inspect.Inspect(ctx, inspect.Subject{Attachment: r.Attachment})
		},
	}, pod)
	if err != nil {
		return nil, fmt.Errorf("%w; besides, %w", err, noAnswer)
	}
	return story, nil
}

// operations returns the recorded operations, and whether crinetd told them.
func (w *whyOptions) operations(ctx context.Context, q recorder.Query) (all []recorder.Operation, live bool, err error) {
	all, err = w.client().Operations(ctx, q)
	if !errors.Is(err, admin.ErrNoAnswer) {
		return all, true, err
	}
	read, readErr := recorder.Read(w.stateDir, q)
	if readErr != nil {
		return nil, false, errors.Join(err, readErr)
	}
	return read, false, nil
}

// failures lists the pods that failed last.
func (w *whyOptions) failures(ctx context.Context) error {
	all, live, err := w.operations(ctx, recorder.Query{})
	if err != nil {
		return err
	}
	failed := failuresIn(all)
	return w.print(failed, func() error {
		if !live {
			if _, err := fmt.Fprintf(w.stdout, "No crinetd answers: this is from the files in %s.\n", w.stateDir); err != nil {
				return err
			}
		}
		return printFailures(w.stdout, failed, time.Now())
	})
}

// podFailure is the last failure of a pod.
type podFailure struct {
	recorder.Operation
	// Since says what came of the pod since then: "came up", "was removed" or empty.
	Since string `json:"since,omitempty"`
}

// failuresIn returns the last failure of each pod, the newest first. The operations
// are the newest first.
func failuresIn(all []recorder.Operation) []podFailure {
	failed := []podFailure{}
	since := make(map[string]string) // pod -> what came of it
	seen := make(map[string]bool)
	for _, o := range all {
		pod := o.Pod.String()
		switch {
		case seen[pod]:
		case o.Failed():
			seen[pod] = true
			failed = append(failed, podFailure{o, since[pod]})
		case since[pod] != "" || o.State != recorder.Done:
		case o.Verb == recorder.Add:
			since[pod] = "came up"
		case o.Verb == recorder.Del:
			since[pod] = "was removed"
		}
	}
	return failed
}

func printFailures(stdout io.Writer, failed []podFailure, now time.Time) error {
	w := newTable(stdout)
	if len(failed) == 0 {
		w.row("No operation failed, as far as is recorded.")
		return w.Flush()
	}
	w.row("AGO", "POD", "WHAT", "SINCE THEN", "ERROR")
	for _, f := range failed {
		text := f.Err
		if f.State == recorder.CutOff {
			text = "crinetd ended meanwhile"
		}
		w.row(ago(f.Start, now), harmless(f.Pod.String()), f.Verb, orNone(f.Since), cutTo(harmless(shortened(text)), 100))
	}
	w.gap()
	w.row("crinetctl why POD tells more of one of them.")
	return w.Flush()
}

// followEvery is how often follow asks, followFirst how many operations it begins with.
const (
	followEvery = time.Second
	followFirst = 10
)

// follow prints operations as they end, until ctx does.
func (w *whyOptions) follow(ctx context.Context, pod string) error {
	seen := make(map[string]bool)
	limit := followFirst
	for {
		all, _, err := w.operations(ctx, recorder.Query{Pod: pod, Limit: limit})
		if err != nil && ctx.Err() == nil {
			return err
		}
		for i := len(all) - 1; i >= 0; i-- {
			o := &all[i]
			if o.State == recorder.UnderWay || seen[o.ID] {
				continue
			}
			seen[o.ID] = true
			if err := w.print(o, func() error { return w.printLine(o) }); err != nil {
				return err
			}
		}
		limit = recorder.Keep
		if !backoff.Sleep(ctx, followEvery) {
			return nil
		}
	}
}

// printLine prints an operation as one line.
func (w *whyOptions) printLine(o *recorder.Operation) error {
	outcome := "ok"
	for _, address := range o.Addresses {
		outcome += " " + address
	}
	if o.Failed() {
		outcome = w.paint(red, cutTo("FAILED: "+harmless(o.Err), 120))
	}
	_, err := fmt.Fprintf(w.stdout, "%s  %-13s  %s  %s  %s  %s\n", o.Start.Local().Format(time.TimeOnly),
		o.Verb, harmless(o.Pod.String()), orNone(short(harmless(o.Sandbox))), duration(o.Took), outcome)
	return err
}
