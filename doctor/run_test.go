package doctor

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// made are checks with these results.
func made(results map[string]Result, after map[string][]string) []Check {
	var checks []Check
	for _, name := range sortedKeys(results) {
		checks = append(checks, Check{Name: name, Why: "why", Severity: Error, After: after[name],
			run: func(context.Context, *Node) Result { return results[name] }})
	}
	return checks
}

// What follows from an error is told once; what rests on it and is well stays so.
func TestFollow(t *testing.T) {
	t.Parallel()
	results := Run(t.Context(), &Node{}, made(map[string]Result{
		"a":       bad("mend", "broken"),
		"b":       bad("mend", "broken"),
		"c":       unknown("it is broken"),
		"d":       good("all well"),
		"e":       bad("mend", "broken"),
		"warns":   bad("mend", "smells").at(Warning),
		"x":       bad("mend", "broken"),
		"z-alone": bad("mend", "broken"),
	}, map[string][]string{"b": {"a"}, "c": {"b"}, "d": {"a"}, "e": {"d"}, "x": {"warns", "not-chosen"}}))
	var got []string
	for _, r := range results {
		got = append(got, r.Check+" "+string(r.Outcome)+" "+r.Follows)
	}
	want := []string{"a error ", "e error ", "x error ", "z-alone error ", "warns warning ", "b skipped a", "c skipped a", "d ok "}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// A check that hangs or breaks takes no other with it, and no longer than its time.
func TestRunIsBounded(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	checks := append(made(map[string]Result{"good": good("well")}, nil),
		Check{Name: "hangs", run: func(context.Context, *Node) Result { <-hang; return Result{} }},
		Check{Name: "breaks", run: func(context.Context, *Node) Result { panic("boom") }},
		Check{Name: "waits", run: func(ctx context.Context, n *Node) Result {
			_, err := n.askRuntime(ctx)
			return unknown("%v", err)
		}})
	n := &Node{Runtime: func(ctx context.Context) (*Runtime, error) { <-ctx.Done(); return nil, ctx.Err() }}
	begun := time.Now()
	results := Run(t.Context(), n, checks)
	if took := time.Since(begun); took > 3*checkTime {
		t.Errorf("took %v", took)
	}
	for _, r := range results {
		if want := map[string]Outcome{"good": OK}[r.Check]; r.Outcome != want && (want == OK || r.Outcome != Unknown) {
			t.Errorf("%+v", r)
		}
	}
}

// What others wrote cannot command a terminal, nor fill the screen.
func TestPrintable(t *testing.T) {
	t.Parallel()
	if got, want := printable("a\x1b[2J\nb\tc\x00\u202e\xff"), `a\x1b[2J b c\x00\u202e\ufffd`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := printable(strings.Repeat("ä", maxText)); len(got) > maxText+3 || !strings.HasSuffix(got, "...") {
		t.Errorf("%d bytes", len(got))
	}
}

// The checks are data that an operator can rely on.
func TestChecksAreComplete(t *testing.T) {
	t.Parallel()
	checks := Checks()
	if len(checks) < 60 {
		t.Errorf("there are %d checks", len(checks))
	}
	kebab := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	seen := make(map[string]bool)
	for _, c := range checks {
		if seen[c.Name] || !kebab.MatchString(c.Name) {
			t.Errorf("the name %q", c.Name)
		}
		seen[c.Name] = true
		if c.Looks == "" || c.Why == "" || c.Concern == "" || !slices.Contains([]Severity{Info, Warning, Error}, c.Severity) {
			t.Errorf("%s is not complete: %+v", c.Name, c)
		}
	}
	for _, c := range checks {
		for _, name := range c.After {
			if !seen[name] {
				t.Errorf("%s rests on %s, which does not exist", c.Name, name)
			}
		}
	}
	if _, err := Select(checks, []string{"nosuch"}); err == nil {
		t.Error("a check that does not exist is chosen")
	}
	if chosen := OfConcern(checks, KernelConcern); len(chosen) < 4 || len(chosen) > len(checks)/2 {
		t.Errorf("%d checks are the kernel's", len(chosen))
	}
	for i, c := range checks {
		results := Run(t.Context(), &Node{Root: t.TempDir(), Options: mustOptions(t)}, checks[i:i+1])
		if strings.Contains(results[0].Found, "the check itself failed") {
			t.Errorf("%s on an empty tree: %+v", c.Name, results[0])
		}
	}
}

// What the kernel cannot do is told with the module that is missing, and why.
func TestKernelChecks(t *testing.T) {
	t.Parallel()
	tree := conf("/proc/sys/kernel/osrelease", "6.1.0", "/lib/modules/6.1.0/modules.dep", "kernel/net/netfilter/nft_fib_inet.ko: x\n", "/sys/module/nf_tables/version", "")
	for _, c := range []struct {
		check string
		trial kernelTrial
		want  Outcome
		found string
	}{
		{"kernel-nftables", kernelTrial{}, OK, "6.1.0 can do"},
		{"kernel-nftables", kernelTrial{nft: unix.ENOENT}, Outcome(Error), "nf_tables: it is loaded or built in; nft_chain_nat: the kernel 6.1.0 has no such module; nft_fib_inet: it can be loaded"},
		{"kernel-nftables", kernelTrial{nft: unix.EPERM}, Unknown, "may not be tried"},
		{"kernel-veth", kernelTrial{}, OK, ""},
		{"kernel-veth", kernelTrial{veth: unix.EOPNOTSUPP}, Outcome(Error), "veth pairs"},
		{"kernel-bridge", kernelTrial{}, OK, ""},
		{"kernel-bridge", kernelTrial{bridge: unix.EOPNOTSUPP}, Outcome(Error), "bridges"},
		{"kernel-conntrack", kernelTrial{}, OK, ""},
		{"kernel-conntrack", kernelTrial{conntrack: errors.New("no")}, Outcome(Warning), "conntrack"},
	} {
		n := (&tc{files: tree}).node(t)
		preset(&n.trial, &c.trial)
		checks, err := Select(Checks(), []string{c.check})
		if err != nil {
			t.Fatal(err)
		}
		if r := Run(t.Context(), n, checks)[0]; r.Outcome != c.want || !strings.Contains(r.Found, c.found) {
			t.Errorf("%+v: got %+v", c, r)
		}
	}
}
