package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/doctor"
)

// sick makes a report with so many warnings besides an error, an info, something
// unknown, something skipped and something well.
func sick(warnings int) doctor.Report {
	results := []doctor.Result{{Check: "a", Outcome: "error", Found: "broken", Why: "it is bad", Mend: "do this"}}
	for range warnings {
		results = append(results, doctor.Result{Check: "b", Outcome: "warning", Found: "smells", Why: "it gets bad", Mend: "do that"})
	}
	return doctor.NewReport(&doctor.Node{}, append(results,
		doctor.Result{Check: "c", Outcome: "info", Found: "new", Why: "it may matter", Mend: "look"},
		doctor.Result{Check: "d", Outcome: "unknown", Found: "dark"},
		doctor.Result{Check: "e", Outcome: "skipped", Found: "follows from a", Follows: "a"},
		doctor.Result{Check: "f", Outcome: "ok", Found: "fine"}))
}

// The first screen has faults and mends; reasons come as far as they fit.
func TestDoctorReport(t *testing.T) {
	t.Parallel()
	const found = `ERROR   a: broken
        mend: do this
        why:  it is bad
WARNING b: smells
        mend: do that
        why:  it gets bad
INFO    c: new
        mend: look
        why:  it may matter
`
	for name, c := range map[string]struct {
		flags  doctorFlags
		report doctor.Report
		want   string
	}{
		"findings": {doctorFlags{}, sick(1), found + "1 of 6 checks are well (1 error, 1 warning, 1 info, 1 unknown, 1 skipped); could not look: d; --all shows everything\n"},
		"all":      {doctorFlags{all: true}, sick(1), found + "UNKNOWN d: dark\nSKIPPED e: follows from a\nOK      f: fine\n1 of 6 checks are well (1 error, 1 warning, 1 info, 1 unknown, 1 skipped)\n"},
		"well":     {doctorFlags{}, doctor.NewReport(&doctor.Node{}, []doctor.Result{{Check: "f", Outcome: "ok"}}), "1 of 1 checks are well\n"},
	} {
		var out bytes.Buffer
		if err := printReport(&options{stdout: &out}, &c.flags, c.report); err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, out.String(), c.want)
		}
	}
	var out bytes.Buffer
	if err := printReport(&options{stdout: &out}, &doctorFlags{}, sick(9)); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out.String(), "\n"); lines > screenLines || strings.Contains(out.String(), "why:") {
		t.Errorf("eleven findings take %d lines:\n%s", lines, out.String())
	}
	out.Reset()
	if err := printReport(&options{stdout: &out, colour: true}, &doctorFlags{}, sick(0)); err != nil || !strings.Contains(out.String(), "\x1b[31mERROR  \x1b[0m a: broken") {
		t.Errorf("in colour: %v, %q", err, out.String())
	}
}

// The exit code is 1 for an error, and 3 for warnings where that is asked for.
func TestDoctorExitCode(t *testing.T) {
	t.Parallel()
	warns := doctor.NewReport(&doctor.Node{}, []doctor.Result{{Outcome: "warning"}})
	for name, c := range map[string]struct {
		report doctor.Report
		strict bool
		want   int
	}{
		"error": {sick(1), false, 1}, "error, strict": {sick(1), true, 1}, "warning": {warns, false, 0}, "warning, strict": {warns, true, 3},
		"well": {doctor.NewReport(&doctor.Node{}, nil), true, 0},
	} {
		var exit exitError
		if err := verdict(c.report, c.strict); errors.As(err, &exit) != (c.want != 0) || exit.code != c.want {
			t.Errorf("%s: %v, want code %d", name, err, c.want)
		}
	}
}

// The command looks at a tree, lists its checks, and refuses those that do not exist.
func TestDoctorOnATree(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "etc/other")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	doctorOf := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"doctor", "--root", root}, args...), &out)
		return out.String(), err
	}
	var exit exitError
	out, err := doctorOf("--check", "conf-dir,network-plugin")
	if !errors.As(err, &exit) || exit.code != 1 || !strings.Contains(out, "/etc/cni/net.d does not exist") || !strings.Contains(out, "0 of 2 checks are well (1 error, 1 skipped)") {
		t.Errorf("a tree without a conf dir: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.conf"), []byte(`{"cniVersion":"1.0.0","name":"a","type":"ptp"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = doctorOf("--check", "conf-dir", "--cni-conf-dir", "/etc/other", "-o", "json")
	var report doctor.Report
	if jsonErr := json.Unmarshal([]byte(out), &report); err != nil || jsonErr != nil || report.Outcome != doctor.OK || report.Counts[doctor.OK] != 1 ||
		report.OptionsFrom != "crinetd's defaults" || !strings.Contains(report.Results[0].Found, "/etc/other") {
		t.Errorf("with another conf dir: %v, %v\n%s", err, jsonErr, out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var watched bytes.Buffer
	if err := run(ctx, []string{"doctor", "--root", root, "--watch", "--check", "conf-dir"}, &watched); err != nil || !strings.Contains(watched.String(), "checks are well") {
		t.Errorf("--watch that is interrupted: %v, %s", err, watched.String())
	}
	out, err = doctorOf("--list")
	for _, c := range doctor.Checks() {
		if !strings.Contains(out, c.Name+" ") || !strings.Contains(out, c.Why) {
			t.Errorf("--list lacks %s: %v", c.Name, err)
		}
	}
	for _, args := range [][]string{{"--check", "nosuch"}, {"--network-plugin-mtu=1"}, {"--cni-conf-dir=relative"}, {"more"}} {
		var usage usageError
		if _, err := doctorOf(args...); !errors.As(err, &usage) {
			t.Errorf("%q: %v, want an error in the command line", args, err)
		}
	}
}
