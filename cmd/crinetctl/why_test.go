package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

var web = journal.Pod{Namespace: "default", Name: "web", UID: "uid-web"}

// run1 is a run of a plugin, so many milliseconds after the start.
func run1(typ, command string, at, took int, builtin bool) recorder.Run {
	return recorder.Run{
		Type: typ, Command: command, Builtin: builtin, Start: start.Add(time.Duration(at) * time.Millisecond), Took: float64(took) / 1000,
	}
}

// goodStory is a pod's whose network stands, or whose last ADD failed with an error.
func storyOf(failure string) *why.Story {
	steps := []recorder.Step{
		{Step: "create", Start: start, Took: .0121}, {Step: "netns", Start: start.Add(12 * time.Millisecond), Took: .0003},
		{Step: "plugin", Start: start.Add(12400 * time.Microsecond), Took: .105}, {Step: "start", Start: start.Add(118 * time.Millisecond), Took: .06},
	}
	add := recorder.Operation{
		ID: "x-1", State: recorder.Done, Verb: recorder.Add, By: recorder.ByCRI, Pod: web, Sandbox: "4f2a9c81d7e3b5a6", IfName: "eth0",
		Start: start.Add(12 * time.Millisecond), Took: .1061, Steps: steps[:3], Err: failure,
		Runs: []recorder.Run{run1("bridge", "ADD", 13, 3, true), run1("portmap", "ADD", 16, 101, false)},
	}
	s := &why.Story{Told: "crinetd", Pod: web, Verdict: why.Stands, Sandboxes: []why.Sandbox{{
		ID: add.Sandbox, IfName: "eth0", NetNS: "/run/netns/x", Start: add.Start, Network: "mynet", File: "/etc/cni/net.d/10-mynet.conflist",
		Selected: "the first usable network in /etc/cni/net.d", State: "attached", Addresses: []string{"10.10.0.2/16"}, HostPorts: []string{"tcp *:8080"},
		Steps: steps, Operations: []recorder.Operation{add},
		Findings: []inspect.Finding{{Part: inspect.PartInterface, Want: "eth0, which is up", OK: true}, {Part: inspect.PartAddress, Want: "10.10.0.2/16 on eth0", OK: true}},
	}}}
	if failure != "" {
		box := &s.Sandboxes[0]
		portmap := &box.Operations[0].Runs[1]
		portmap.Err, portmap.Stdout = "exit status 1", json.RawMessage(`{"code":100,"msg":"no chain \u001b[2J","details":"x"}`)
		portmap.Stderr = "iptables:\n\x1b]0;owned\x07 \u202efoo"
		box.Findings, box.Steps, box.State = nil, steps[:3], ""
		s.Verdict, s.Fault, s.Mends = why.Failed, failure, []string{"Install iptables.", "Or do not."}
		s.Sandboxes = append(s.Sandboxes, *box, *box)
	}
	return s
}

// A story fits on a screen of 80 columns, its fault and what to do with it, and what
// others wrote cannot upset a terminal.
func TestStory(t *testing.T) {
	t.Parallel()
	long := storyOf("plugin portmap: " + strings.Repeat("very long words ", 200))
	for i := range 30 {
		long.Sandboxes[0].Operations[0].Runs = append(long.Sandboxes[0].Operations[0].Runs, run1(fmt.Sprint("p", i), "DEL", 120+i, 1, false))
	}
	long.Mends = []string{strings.Repeat("do this ", 100), strings.Repeat("or that ", 100), "c", "d"}
	refused := &why.Story{Told: "crinetd", Pod: web, Verdict: why.Refused, Fault: "hostPort tcp *:80 is held by pod a/b", Mends: []string{"Free it."},
		Sandboxes: []why.Sandbox{{Start: start, Operations: []recorder.Operation{{State: recorder.Done, Verb: recorder.RunPodSandbox, By: recorder.ByCRI, Start: start, Err: "hostPort", Times: 7}}}}}
	for name, s := range map[string]*why.Story{
		"why-good.txt": storyOf(""), "why-failed.txt": storyOf("plugin portmap: no chain \x1b[2J"), "why-long.txt": long, "why-refused.txt": refused,
		"why-several.txt": {Candidates: []why.Candidate{{Pod: web, Sandbox: "4f2a9c81d7e3b5a6", Last: start}, {Pod: journal.Pod{Namespace: "b", Name: "web"}, Last: start}}},
	} {
		var out bytes.Buffer
		w := &whyOptions{options: &options{stdout: &out, output: "table"}}
		if err := w.printStory(s, start.Add(90*time.Second)); err != nil {
			t.Fatal(err)
		}
		golden(t, name, out.String())
		if n := strings.Count(out.String(), "\n"); n > 24 {
			t.Errorf("%s has %d lines", name, n)
		}
		for line := range strings.Lines(out.String()) {
			if utf8.RuneCountInString(line) > columns+1 || strings.ContainsAny(line, "\x1b\x07\u202e") {
				t.Errorf("%s: %q", name, line)
			}
		}
	}
	var out bytes.Buffer
	w := &whyOptions{options: &options{stdout: &out, output: "table", colour: true}, all: true}
	if err := w.printStory(storyOf("no"), start); err != nil || strings.Count(out.String(), "portmap ADD") != 3 || !strings.Contains(out.String(), "\x1b[31m") {
		t.Errorf("--all on a terminal: %v\n%s", err, out.String())
	}
}

// recorded is a source that tells what is recorded.
type recorded struct {
	operations []recorder.Operation
	story      *why.Story
	whyErr     error
	asked      func() // may be nil
}

func (r recorded) Operations(recorder.Query) ([]recorder.Operation, error) {
	if r.asked != nil {
		r.asked()
	}
	return r.operations, r.whyErr
}

func (r recorded) Why(context.Context, string) (*why.Story, error) { return r.story, r.whyErr }

// The exit code is 0 when the network stands, 1 when something is amiss, 2 for a pod
// that is unknown or several.
func TestWhyExitCodes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		told    recorded
		args    []string
		code    int
		printed string
	}{
		{"stands", recorded{story: storyOf("")}, []string{"web"}, 0, "its network stands"},
		{"stands, JSON", recorded{story: storyOf("")}, []string{"web", "-o", "json"}, 0, `"verdict": "stands"`},
		{"failed", recorded{story: storyOf("no")}, []string{"web"}, 1, "its network FAILED"},
		{"failed, JSON", recorded{story: storyOf("no")}, []string{"web", "-o", "json"}, 1, `"fault": "no"`},
		{"unknown", recorded{whyErr: fmt.Errorf("x: %w", why.ErrUnknown)}, []string{"web"}, 2, ""},
		{"several", recorded{story: &why.Story{Candidates: make([]why.Candidate, 2)}}, []string{"web"}, 2, "POD"},
		{"two pods", recorded{}, []string{"web", "db"}, 2, ""},
		{"trouble", recorded{whyErr: errors.New("no")}, []string{"web"}, 1, ""},
		{"list", recorded{operations: storyOf("no").Sandboxes[0].Operations}, nil, 0, "default/web"},
		{"empty list", recorded{}, nil, 0, "No operation failed"},
		{"list, trouble", recorded{whyErr: errors.New("no")}, nil, 1, ""},
	} {
		s := full()
		s.recorded = c.told
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"why", "--run-dir", serve(t, s)}, c.args...), &out)
		code := 0
		if err != nil {
			code = 1
		}
		if errors.As(err, new(usageError)) {
			code = 2
		}
		if code != c.code || !strings.Contains(out.String(), c.printed) {
			t.Errorf("%s: exit code %d, want %d: %v\n%s", c.name, code, c.code, err, out.String())
		}
	}
}

// Without crinetd the story is told from its files.
func TestWhyWithoutCrinetd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := recorder.New(recorder.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	r.Failed(recorder.RunPodSandbox, recorder.ByCRI, &journal.Record{Pod: web}, errors.New("pod refused: hostPort tcp *:80 is held by pod a/b"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--run-dir", filepath.Join(dir, "none"), "--state-dir", dir}
	for _, c := range []struct {
		args  []string
		usage bool
		fails bool
		want  []string
	}{
		{[]string{"web"}, false, true, []string{"it was REFUSED", "No crinetd answers", dir, "held by pod a/b", "What to do", "Free hostPort tcp *:80"}},
		{nil, false, false, []string{"No crinetd answers", "default/web"}},
		{[]string{"db"}, true, true, nil},
	} {
		var out bytes.Buffer
		err := run(t.Context(), append(append([]string{"why"}, flags...), c.args...), &out)
		if (err != nil) != c.fails || errors.As(err, new(usageError)) != c.usage {
			t.Errorf("why %q: %v", c.args, err)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("why %q does not say %q:\n%s", c.args, want, out.String())
			}
		}
	}
}

// --watch prints each operation once, until it is interrupted.
func TestWhyWatch(t *testing.T) {
	t.Parallel()
	s := full()
	s.operations = []recorder.Operation{
		{ID: "2", State: recorder.UnderWay, Verb: recorder.Add, Pod: web}, {ID: "1", State: recorder.Done, Verb: recorder.Del, Pod: web, Start: start, Err: "\x1bno"},
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var times atomic.Int32
	s.asked = func() {
		if times.Add(1) == 3 {
			stop()
		}
	}
	var out bytes.Buffer
	if err := run(ctx, []string{"why", "--watch", "--run-dir", serve(t, s)}, &out); err != nil {
		t.Error(err)
	}
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `FAILED: \x1bno`) || !strings.Contains(got, "default/web") {
		t.Errorf("watched:\n%s", got)
	}
}

// A pod's failure is listed once, with what came of it.
func TestFailuresIn(t *testing.T) {
	t.Parallel()
	op := func(name, verb, err string) recorder.Operation {
		return recorder.Operation{State: recorder.Done, Verb: verb, Pod: journal.Pod{Namespace: "d", Name: name}, Err: err}
	}
	var got []string
	for _, f := range failuresIn([]recorder.Operation{
		op("a", recorder.Add, ""), op("b", recorder.Add, "b2"), op("a", recorder.Add, "a1"), op("b", recorder.Add, "b1"),
		op("c", recorder.Add, ""), op("d", recorder.Del, ""), op("d", recorder.Add, "d1"),
	}) {
		got = append(got, f.Pod.Name+" "+f.Err+" "+f.Since)
	}
	if want := "b b2 ,a a1 came up,d d1 was removed"; strings.Join(got, ",") != want {
		t.Errorf("failures %q, want %s", got, want)
	}
}

// What the rest of the screen says is left out of an error, and nothing else.
func TestShortened(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abc", 5)[:64]
	for fault, want := range map[string]string{
		`network "n": ADD of sandbox ` + id + `: plugin type="bridge" failed (add): built-in plugin bridge: no`: "built-in plugin bridge: no",
		`pod refused: pod a/b: reserve the hostPorts of pod a/b: hostPort tcp *:80 is held by pod c/d: x`:       "hostPort tcp *:80 is held by pod c/d: x",
		`no; besides, network "n": DEL of sandbox ` + id + `: no`:                                               `no; besides, network "n": DEL of sandbox 0123456789abc: no`,
		"": "",
	} {
		if got := shortened(fault); got != want {
			t.Errorf("%s became %s", fault, got)
		}
	}
}
