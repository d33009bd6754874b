// Package doctor looks at a node and says what is wrong with its pod network, why that
// matters, and how to mend it. It needs no crinetd: the node whose crinetd does not
// start is the one that matters most.
//
// A check is data: a name, what it looks at, why that matters, its severity, the checks
// that it rests on, and a function of a [Node]. [Run] runs checks side by side, each
// within a second. What follows from another finding is not told twice: a check that
// fails beside one that it rests on is reported as skipped.
//
// Checks read files, sysctls, netlink and sockets. They change nothing on the node.
// What cannot be known is unknown, with the reason, and never an error.
package doctor

import (
	"context"
	"fmt"
	"strings"
)

// Severity is how bad it is when a check fails, and what a finding counts as.
type Severity string

// The severities.
const (
	// Info is worth knowing; nothing fails.
	Info Severity = "info"
	// Warning: something does not work, or soon will not.
	Warning Severity = "warning"
	// Error: pods fail, or will.
	Error Severity = "error"
)

// Outcome is how a check ended: a Severity when it found something.
type Outcome string

// The outcomes that are no findings.
const (
	// OK: what was looked at is well.
	OK Outcome = "ok"
	// Skipped: there was nothing to look at, or what was found follows from another
	// finding.
	Skipped Outcome = "skipped"
	// Unknown: it could not be looked at.
	Unknown Outcome = "unknown"
)

// Check is one thing that the doctor looks at.
type Check struct {
	// Name is unique, in kebab case.
	Name string `json:"name"`
	// Concern is the group that the check belongs to.
	Concern string `json:"concern"`
	// Looks says in one line what it looks at.
	Looks string `json:"looks"`
	// Why says what fails when the check fails.
	Why string `json:"why"`
	// Severity is that of a finding, unless the check says another one.
	Severity Severity `json:"severity"`
	// After are the names of the checks that this one rests on.
	After []string `json:"after,omitempty"`

	run func(context.Context, *Node) Result
}

// Result is what one check found.
type Result struct {
	// Check and Concern are those of the check.
	Check   string `json:"check"`
	Concern string `json:"concern"`
	// Outcome is ok, info, warning, error, skipped or unknown.
	Outcome Outcome `json:"outcome"`
	// Found is what is, with names and figures; for skipped and unknown the reason.
	Found string `json:"found"`
	// Why says what fails because of it; empty if nothing was found.
	Why string `json:"why,omitempty"`
	// Mend is a command, or a file and the change to it; empty if nothing was found.
	Mend string `json:"mend,omitempty"`
	// Follows names the check whose finding this one follows from.
	Follows string `json:"follows,omitempty"`
	// Seconds is how long the check took.
	Seconds float64 `json:"seconds"`
}

// Failed says whether the result is a warning or an error.
func (r *Result) Failed() bool {
	return r.Outcome == Outcome(Error) || r.Outcome == Outcome(Warning)
}

// Report is a whole run, as crinetctl doctor prints it in JSON.
type Report struct {
	// Outcome is the worst one: ok, warning or error.
	Outcome Outcome `json:"outcome"`
	// Counts are the results by outcome.
	Counts map[Outcome]int `json:"counts"`
	// OptionsFrom says where crinetd's flags were found.
	OptionsFrom string `json:"optionsFrom"`
	// Results are in the order of [Run].
	Results []Result `json:"results"`
}

// NewReport sums results up.
func NewReport(n *Node, results []Result) Report {
	r := Report{Outcome: OK, Counts: make(map[Outcome]int), OptionsFrom: n.OptionsFrom, Results: results}
	for _, result := range results {
		r.Counts[result.Outcome]++
	}
	for _, worst := range []Severity{Warning, Error} {
		if r.Counts[Outcome(worst)] > 0 {
			r.Outcome = Outcome(worst)
		}
	}
	return r
}

// good is the result of a check that found all well.
func good(format string, args ...any) Result {
	return Result{Outcome: OK, Found: fmt.Sprintf(format, args...)}
}

// skip is the result of a check that does not apply.
func skip(format string, args ...any) Result {
	return Result{Outcome: Skipped, Found: fmt.Sprintf(format, args...)}
}

// unknown is the result of a check that could not look.
func unknown(format string, args ...any) Result {
	return Result{Outcome: Unknown, Found: fmt.Sprintf(format, args...)}
}

// bad is a finding of the check's own severity.
func bad(mend, format string, args ...any) Result {
	return Result{Found: fmt.Sprintf(format, args...), Mend: mend}
}

// at gives a finding another severity.
func (r Result) at(s Severity) Result {
	r.Outcome = Outcome(s)
	return r
}

// because gives a finding another reason than the check's.
func (r Result) because(why string) Result {
	r.Why = why
	return r
}

// few lists at most three items, and counts the others.
func few(items []string) string {
	const most = 3
	if len(items) <= most {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:most], ", "), len(items)-most)
}
