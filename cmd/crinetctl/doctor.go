package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/crinet-project/crinet/doctor"
)

const doctorHelp = `Look at this node and say what is wrong with its pods' network, why that matters and
how to mend it. No crinetd is needed. Nothing on the node is changed.

Errors come first: pods fail, or will. Warnings follow: something does not work, or
soon will not. What follows from another finding is not told twice; it is counted as
skipped, and shown by --all. What cannot be looked at is unknown, and no error.

crinetd's flags are those of the running crinetd, of /etc/default/crinetd or of its
unit; the flags here come after them.

With -o json: outcome (ok, warning, error), counts, optionsFrom, and results, each with
check, concern, outcome (ok, info, warning, error, skipped, unknown), found, why, mend,
follows, seconds.

Exit codes: 0 without an error, 1 with one, 2 for an error in the command line, 3 with
--strict for warnings without an error.`

// screen is how many lines an operator sees at once.
const screen = 24

// watchInterval is the time between two looks of --watch.
const watchInterval = 5 * time.Second

// doctorFlags are the flags of the command doctor.
type doctorFlags struct {
	all, list, watch, strict bool
	checks                   []string
	root                     string
	crinetd                  []string // crinetd's flags, as given
}

// newDoctor makes the command doctor.
func newDoctor(o *options) *cobra.Command {
	f := &doctorFlags{}
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Look at this node: what is wrong with its pods' network, why it matters, how to mend it",
		Long:  doctorHelp,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			c.Flags().Visit(func(flag *pflag.Flag) {
				if flag.Annotations[ofCrinetd] != nil {
					f.crinetd = append(f.crinetd, "--"+flag.Name+"="+flag.Value.String())
				}
			})
			if flag := c.Flag("run-dir"); flag.Changed {
				f.crinetd = append(f.crinetd, "--run-dir="+flag.Value.String())
			}
			return runDoctor(c.Context(), o, f)
		},
	}
	flags := c.Flags()
	flags.BoolVar(&f.all, "all", false, "show what is well, skipped and unknown, too")
	flags.BoolVar(&f.list, "list", false, "list the checks: what they look at and why, and look at nothing")
	flags.BoolVar(&f.watch, "watch", false, "look again every 5 seconds, until interrupted")
	flags.BoolVar(&f.strict, "strict", false, "exit with 3 if there are warnings and no error")
	flags.StringSliceVar(&f.checks, "check", nil, "run these checks only, `NAMES` separated by commas")
	flags.StringVar(&f.root, "root", "/", "the `DIR` of the node's tree, such as an image's; only files are looked at then")
	for _, flag := range []struct{ name, usage string }{
		{"state-dir", "crinetd's `DIR` of the journal"},
		{"cni-conf-dir", "the `DIR` of the CNI network configurations"},
		{"cni-bin-dir", "the `DIRS` of the CNI plugins, separated by commas"},
		{"container-runtime-endpoint", "the runtime's CRI `SOCKET`"},
		{"network-plugin", "the `NAME` of the network plugin"},
	} {
		flags.String(flag.name, "", flag.usage+", if crinetd has another")
		flags.Lookup(flag.name).Annotations = map[string][]string{ofCrinetd: {}}
	}
	return c
}

// ofCrinetd marks flags that are crinetd's.
const ofCrinetd = "crinet/of-crinetd"

// exitError is an outcome that is told by the exit code.
type exitError struct {
	code int
	text string
}

func (e exitError) Error() string { return e.text }

// runDoctor runs the checks and prints what they found.
func runDoctor(ctx context.Context, o *options, f *doctorFlags) error {
	checks := doctor.Checks()
	if len(f.checks) > 0 {
		var err error
		if checks, err = doctor.Select(checks, f.checks); err != nil {
			return usageError{err}
		}
	}
	if f.list {
		return o.print(checks, func() error { return printChecks(o.stdout, checks) })
	}
	for {
		report, err := examine(ctx, f, checks)
		if err != nil {
			return err
		}
		if f.watch && o.colour {
			if _, err := io.WriteString(o.stdout, "\x1b[H\x1b[2J"); err != nil { // home, clear
				return err
			}
		}
		if err := o.print(report, func() error { return printReport(o, f, report) }); err != nil {
			return err
		}
		if !f.watch {
			return verdict(report, f.strict)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

// examine runs the checks on the node.
func examine(ctx context.Context, f *doctorFlags, checks []doctor.Check) (doctor.Report, error) {
	n, err := newDoctorNode(f.root, f.crinetd)
	if err != nil {
		return doctor.Report{}, usageError{err}
	}
	return doctor.NewReport(n, doctor.Run(ctx, n, checks)), nil
}

// verdict is the error that the exit code tells; nil for a node that is well.
func verdict(r doctor.Report, strict bool) error {
	errs, warnings := r.Counts[doctor.Outcome(doctor.Error)], r.Counts[doctor.Outcome(doctor.Warning)]
	switch {
	case errs > 0:
		return exitError{1, fmt.Sprintf("%d errors, %d warnings", errs, warnings)}
	case strict && warnings > 0:
		return exitError{3, fmt.Sprintf("%d warnings", warnings)}
	}
	return nil
}

func printChecks(stdout io.Writer, checks []doctor.Check) error {
	w := newTable(stdout)
	w.row("CHECK", "SEVERITY", "LOOKS AT", "OTHERWISE")
	for _, c := range checks {
		w.row(c.Name, string(c.Severity), c.Looks, c.Why)
	}
	return w.Flush()
}

// printReport prints findings, errors first, with what mends them; then counts, or all
// other results as well.
func printReport(o *options, f *doctorFlags, report doctor.Report) error {
	var b strings.Builder
	shown := 0
	for _, r := range report.Results {
		if f.all || r.Failed() || r.Outcome == doctor.Outcome(doctor.Info) {
			shown++
		}
	}
	// Fault and mend of everything that fits come before the reasons.
	whys := f.all || 3*shown+3 <= screen
	for _, r := range report.Results {
		finding := r.Failed() || r.Outcome == doctor.Outcome(doctor.Info)
		if !finding && !f.all {
			continue
		}
		fmt.Fprintf(&b, "%s %s: %s\n", o.outcome(r.Outcome), r.Check, r.Found)
		if finding {
			fmt.Fprintf(&b, "        mend: %s\n", r.Mend)
			if whys {
				fmt.Fprintf(&b, "        why:  %s\n", r.Why)
			}
		}
	}
	fmt.Fprintf(&b, "%s\n", summary(o, f, report))
	_, err := io.WriteString(o.stdout, b.String())
	return err
}

// outcome is an outcome in a column of its own.
func (o *options) outcome(out doctor.Outcome) string {
	text := fmt.Sprintf("%-7s", strings.ToUpper(string(out)))
	switch out {
	case doctor.Outcome(doctor.Error):
		return o.paint(red, text)
	case doctor.OK:
		return o.paint(green, text)
	}
	return text
}

// summary counts the results, and names what is unknown.
func summary(o *options, f *doctorFlags, report doctor.Report) string {
	var parts, unknown []string
	for _, out := range []doctor.Outcome{"error", "warning", "info", doctor.Unknown, doctor.Skipped} {
		if n := report.Counts[out]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, out))
		}
	}
	for _, r := range report.Results {
		if r.Outcome == doctor.Unknown {
			unknown = append(unknown, r.Check)
		}
	}
	text := fmt.Sprintf("%d of %d checks are well", report.Counts[doctor.OK], len(report.Results))
	if report.Outcome == doctor.OK {
		text = o.paint(green, text)
	}
	if len(parts) > 0 {
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	if len(unknown) > 0 && !f.all {
		text += "; could not look: " + strings.Join(unknown, ", ")
	}
	if !f.all && len(parts) > 0 {
		text += "; --all shows everything"
	}
	return text
}
