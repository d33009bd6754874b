package doctor

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// checkTime bounds one check. All run at once, so that it bounds a run as well.
const checkTime = 1500 * time.Millisecond

// maxText bounds a text of a result, in bytes: much of it is other people's.
const maxText = 1000

// Checks returns all checks, in the order in which an operator would look.
func Checks() []Check {
	var all []Check
	for _, group := range []struct {
		concern string
		checks  []Check
	}{
		{crinetdConcern, crinetdChecks()}, {runtimeConcern, runtimeChecks()}, {configConcern, configChecks()}, {KubeletConcern, kubeletChecks()},
		{firewallConcern, firewallChecks()}, {sysctlConcern, sysctlChecks()}, {addressConcern, addressChecks()}, {addressConcern, hostLocalChecks()},
		{LimitConcern, limitChecks()}, {KernelConcern, kernelChecks()}, {linkConcern, linkChecks()}, {leftoverConcern, leftoverChecks()},
	} {
		for _, c := range group.checks {
			c.Concern = group.concern
			all = append(all, c)
		}
	}
	return all
}

// Select returns the checks of these names, and an error for a name that is none.
func Select(checks []Check, names []string) ([]Check, error) {
	var chosen []Check
	for _, name := range names {
		i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no check %q; --list has all", name)
		}
		chosen = append(chosen, checks[i])
	}
	return chosen, nil
}

// OfConcern returns the checks that have one of these concerns.
func OfConcern(checks []Check, concerns ...string) []Check {
	return slices.DeleteFunc(slices.Clone(checks), func(c Check) bool { return !slices.Contains(concerns, c.Concern) })
}

// Run runs checks on a node and returns their results: errors first, then warnings,
// infos, unknown, skipped and good ones, each in the order of checks. A check that does
// not end within its time, or when ctx ends, is unknown; its goroutine may outlive Run.
// The Node keeps what it has read: each Run needs a Node of its own.
func Run(ctx context.Context, n *Node, checks []Check) []Result {
	results := make([]Result, len(checks))
	var wg sync.WaitGroup
	for i := range checks {
		wg.Go(func() { results[i] = checks[i].do(ctx, n) })
	}
	wg.Wait()
	follow(checks, results)
	slices.SortStableFunc(results, func(a, b Result) int { return rank(a.Outcome) - rank(b.Outcome) })
	return results
}

// rank is the place of an outcome in a report.
func rank(o Outcome) int {
	return slices.Index([]Outcome{Outcome(Error), Outcome(Warning), Outcome(Info), Unknown, Skipped, OK}, o)
}

// do runs one check within its time, and completes its result.
func (c *Check) do(ctx context.Context, n *Node) Result {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	begun := time.Now()
	done := make(chan Result, 1)
	go func() {
		defer func() { // one broken check takes no report away
			if p := recover(); p != nil {
				done <- unknown("the check itself failed: %v", p)
			}
		}()
		done <- c.run(ctx, n)
	}()
	var r Result
	select {
	case r = <-done:
	case <-ctx.Done():
		r = unknown("there was no answer within %v", checkTime)
	}
	r.Check, r.Concern, r.Seconds = c.Name, c.Concern, time.Since(begun).Seconds()
	if r.Outcome == "" {
		r.Outcome = Outcome(c.Severity)
	}
	if r.Why == "" && (r.Failed() || r.Outcome == Outcome(Info)) {
		r.Why = c.Why
	}
	r.Found, r.Why, r.Mend = printable(r.Found), printable(r.Why), printable(r.Mend)
	return r
}

// follow turns what follows from another finding into skipped results.
func follow(checks []Check, results []Result) {
	at := make(map[string]int)
	for i := range checks {
		at[checks[i].Name] = i
	}
	var cause func(i int, depth int) string
	cause = func(i, depth int) string {
		for _, name := range checks[i].After {
			on, ok := at[name]
			if !ok || depth > len(checks) {
				continue
			}
			if deeper := cause(on, depth+1); deeper != "" && results[on].Outcome != OK {
				return deeper
			}
			if results[on].Outcome == Outcome(Error) {
				return name
			}
		}
		return ""
	}
	causes := make([]string, len(results))
	for i := range results {
		if results[i].Failed() || results[i].Outcome == Unknown {
			causes[i] = cause(i, 0)
		}
	}
	for i, from := range causes {
		if from != "" {
			r := &results[i]
			r.Outcome, r.Follows, r.Why, r.Mend = Skipped, from, "", ""
			r.Found = "follows from " + from
		}
	}
}

// printable is a text in one line, without what a terminal would obey, of bounded
// length.
func printable(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	var b strings.Builder
	for _, c := range s {
		if unicode.IsPrint(c) && c != unicode.ReplacementChar {
			b.WriteRune(c)
		} else {
			quoted := strconv.QuoteRuneToASCII(c)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}
