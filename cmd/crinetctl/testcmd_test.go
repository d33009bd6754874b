package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/nettest"
)

// What keeps a test from beginning is said: no crinetd, a crinetd that refuses, a
// candidate that is broken. Too many files are an error of usage.
func TestTestCannotBegin(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "10-broken.conflist")
	if err := os.WriteFile(broken, []byte("{\n \"name\": \"a\",\n \"plugins\": [,]\n}"), 0o600); err != nil {
		t.Fatal(err)
	}
	serving := serve(t, full())
	for name, c := range map[string]struct {
		args  []string
		want  string
		usage bool
	}{
		"no crinetd": {[]string{"--run-dir=" + dir, "test"}, "needs a running crinetd", false},
		"refused":    {[]string{"--run-dir=" + serving, "test"}, "no test: the network is not lent", false},
		"broken":     {[]string{"--run-dir=" + serving, "test", broken}, broken + ":3:14: is broken", false},
		"no file":    {[]string{"--run-dir=" + serving, "test", broken + "x.conf"}, "no such file", false},
		"two files":  {[]string{"test", broken, broken}, "one FILE", true},
	} {
		var out bytes.Buffer
		err := run(context.Background(), c.args, &out)
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, new(usageError)) != c.usage {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// A step is shown while it runs on a terminal only; a fault is told below its step.
func TestTestIsTold(t *testing.T) {
	steps := []nettest.Result{
		{Step: "ADD", Status: nettest.Passed, Seconds: .0123, Note: "network a"},
		{Step: "pod to pod", Status: nettest.Failed, Seconds: 1.5, Fault: &nettest.Fault{
			Sent: "TCP from pod 1 to pod 2", Came: "nothing within 900ms", Lost: "at a rule", Do: []string{"this", "or that"}, Also: []string{"UDP", "ICMP"},
		}},
		{Step: "pod to outside", Status: nettest.Failed, Seconds: 1.5, Fault: &nettest.Fault{
			Sent: "ICMP echo from pod 1", Came: "nothing within 900ms", Lost: "at a rule", Do: []string{"this", "or that"}, Also: []string{"UDP"},
		}},
		{Step: "hairpin", Status: nettest.Skipped, Note: "no hostPort is mapped"},
	}
	for file, o := range map[string]*options{"test.txt": {}, "test-terminal.txt": {colour: true}, "test.json": {output: "json"}} {
		var out bytes.Buffer
		o.stdout = &out
		n := &nodeTest{options: o}
		for _, r := range steps {
			n.begin(r.Step)
			n.done(r)
		}
		if err := n.finish(); err == nil || err.Error() != "2 of 4 steps failed" {
			t.Errorf("%s: %v", file, err)
		}
		got := out.String()
		if before, after, ok := strings.Cut(got, `"seconds": `); ok && o.output == "json" { // of the whole
			_, after, _ = strings.Cut(after, ",")
			got = before + `"seconds": 1,` + after
		}
		if at := strings.LastIndex(got, " in "); at > 0 && o.output != "json" {
			got = got[:at] + " in 1s\n"
		}
		golden(t, file, got)
	}
}
