package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
)

var begin = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// operation is one of a pod, some seconds after begin.
func operation(pod, verb string, after int, took float64, err string) recorder.Operation {
	return recorder.Operation{
		ID: pod + verb, State: recorder.Done, Verb: verb, By: recorder.ByCRI, Pod: journal.Pod{Namespace: "default", Name: pod},
		Sandbox: "0123456789abcdef", Start: begin.Add(time.Duration(after) * time.Second), Took: took, Err: err,
		Runs: []recorder.Run{{Type: "bridge", Command: verb, Builtin: err == "", Start: begin, Took: took, Err: err, Stderr: "the plugin's own words"}},
	}
}

// sources are those of a node on which everybody answers.
func sources(t *testing.T) *Sources {
	t.Helper()
	root := t.TempDir()
	for path, text := range map[string]string{
		"/etc/cni/net.d/10-net.conflist": `{"name": "net", "token": "s3cr3t", "plugins": []}`,
		"/etc/cni/net.d/20-broken.conf":  "{\"password\": \"s3cr3t\",\n",
		"/etc/containerd/config.toml":    "[auth]\n  password = \"s3cr3t\"\n  conf_dir = \"/etc/cni/net.d\"\n",
	} {
		if err := os.MkdirAll(filepath.Dir(root+path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Sources{
		Host: "node-1", Version: "1.2.3", Now: begin.Add(time.Minute), Root: root,
		ConfDirs: []string{"/etc/cni/net.d", "/etc/nowhere"}, Files: []string{"/etc/containerd/config.toml", "/etc/none"},
		Commands: [][]string{{"echo", "Authorization: Bearer abcdefgh", "and more"}, {"no-such-program"}, {"false"}},
		Status: func(context.Context) (admin.Status, error) {
			return admin.Status{Version: "1.2.3", Plugin: "cni", Ready: true, Network: "net", NetworkFile: "10-net.conflist"}, nil
		},
		Pods: func(context.Context) ([]admin.Pod, error) {
			return []admin.Pod{{Namespace: "default", Name: "web", State: "attached", Addresses: []string{"10.1.0.2/16"}}}, nil
		},
		Plugins: func(context.Context) (admin.Plugins, error) { return admin.Plugins{}, nil },
		Metrics: func(context.Context) (string, error) { return "crinet_undo_pending 0\n", nil },
		Operations: func() ([]recorder.Operation, error) {
			return []recorder.Operation{
				operation("web", recorder.Del, 30, 0.02, ""), operation("bad", recorder.Add, 20, 2, `no <b>address</b> is free`),
				operation("web", recorder.Add, 10, 0.004, ""),
			}, nil
		},
		Doctor: func(context.Context) (doctor.Report, error) {
			return doctor.Report{Outcome: doctor.Outcome(doctor.Error), Results: []doctor.Result{
				{Check: "ip-forward", Outcome: doctor.Outcome(doctor.Error), Found: "net.ipv4.ip_forward is 0", Mend: "sysctl -w net.ipv4.ip_forward=1"},
				{Check: "disk-space", Outcome: doctor.OK, Found: "20 GiB are free"},
			}}, nil
		},
	}
}

// archive makes a report and returns its files by name.
func archive(t *testing.T, s *Sources) (map[string]string, Summary) {
	t.Helper()
	var b bytes.Buffer
	summary, err := Write(t.Context(), &b, "report", s)
	if err != nil {
		t.Fatal(err)
	}
	if summary.Bytes != int64(b.Len()) {
		t.Errorf("the summary says %d bytes, want %d", summary.Bytes, b.Len())
	}
	zip, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for r := tar.NewReader(zip); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, summary
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(header.Name, "report/")] = string(text)
	}
}

func TestArchive(t *testing.T) {
	files, summary := archive(t, sources(t))
	for name, want := range map[string]string{
		"status.json":                         `"ready": true`,
		"doctor.json":                         "ip_forward is 0",
		"operations.json":                     "bridge",
		"metrics.txt":                         "crinet_undo_pending 0",
		"files/etc/cni/net.d/10-net.conflist": `"name": "net"`,
		"files/etc/cni/net.d/20-broken.conf":  "password",
		"files/etc/containerd/config.toml":    `conf_dir = "/etc/cni/net.d"`,
		"commands/false.txt":                  "exit status 1",
		"README.txt":                          "no-such-program",
		"report.html":                         "Node node-1",
		"commands/echo_Authorization:_Bearer_abcdefgh_and_more.txt": "and more",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s has %q, want %q in it", name, files[name], want)
		}
	}
	for name, text := range files {
		if strings.Contains(text, "s3cr3t") || strings.HasPrefix(name, "commands/echo") && strings.Contains(text, "abcdefgh") {
			t.Errorf("a secret is in %s: %s", name, text)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON: %s", name, text)
		}
	}
	var missing []string
	for _, m := range summary.Missing {
		missing = append(missing, m.Part)
	}
	for _, want := range []string{"files/etc/none", "files/etc/nowhere", "commands/no-such-program.txt"} {
		if !strings.Contains(strings.Join(missing, "\n"), want) {
			t.Errorf("missing are %q, want %s", missing, want)
		}
	}
	if len(missing) != 3 {
		t.Errorf("missing: %q", missing)
	}
}

// A part that hangs is named, and delays nobody for long. One that is endless is cut.
func TestNobodyIsWaitedFor(t *testing.T) {
	s := sources(t)
	s.Status = func(ctx context.Context) (admin.Status, error) {
		<-make(chan struct{}) // whatever ctx says
		return admin.Status{}, nil
	}
	s.Commands = [][]string{{"sh", "-c", "echo begun; exec sleep 100"}, {"yes"}}
	began := time.Now()
	files, summary := archive(t, s)
	if took := time.Since(began); took > 2*askTime {
		t.Errorf("the report took %v", took)
	}
	if len(summary.Missing) == 0 || !strings.Contains(files["README.txt"], "status.json: no answer within") {
		t.Errorf("the README says:\n%s", files["README.txt"])
	}
	if !strings.Contains(files["report.html"], "crinetd did not answer") {
		t.Error("the page does not say that crinetd did not answer")
	}
	if text := files["commands/sh_-c_echo_begun;_exec_sleep_100.txt"]; !strings.Contains(text, "begun") {
		t.Errorf("what a program printed before it hung is lost: %q", text)
	}
	if size := len(files["commands/yes.txt"]); size < maxPart || size > maxPart+100 {
		t.Errorf("an endless program's output has %d bytes", size)
	}
}

func TestPage(t *testing.T) {
	files, _ := archive(t, sources(t))
	page := files["report.html"]
	for _, want := range []string{
		"New pods get a network.", "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1", "1 other checks",
		"default/bad", "no &lt;b&gt;address&lt;/b&gt; is free", "the plugin&#39;s own words", `class="bar-failed"`, `class="bar-add"`, `class="bar-del"`,
		"built in", "executed", "2000 ms", "10.1.0.2/16", "commands/no-such-program.txt",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"<script", "http://", "https://", "<b>address", "ZgotmplZ"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
}

func TestLatencies(t *testing.T) {
	var all []recorder.Operation
	for i := range 10 {
		all = append(all, operation("p", recorder.Add, i, float64(i+1)/100, ""))
	}
	all = append(all, operation("p", recorder.Add, 11, 5, "fails"))
	table := latencies(all)
	if len(table) != 2 || table[0].How != "executed" || table[0].Errors != 1 || table[0].P90 != 5 {
		t.Fatalf("latencies: %+v", table)
	}
	if l := table[1]; l.Runs != 10 || l.P50 != 0.05 || l.P90 != 0.09 || l.Max != 0.1 || len(l.Dots) != 10 {
		t.Errorf("latencies of the built-in: %+v", l)
	}
	for took, want := range map[float64]float64{0: 0, 0.0001: 0, 0.1: 50, 100: 100, 1000: 100} {
		if got := scale(took); math.Abs(got-want) > 1e-6 {
			t.Errorf("%v s is at %v, want %v", took, got, want)
		}
	}
}

// Many pods and one moment are drawn within bounds.
func TestTimelineBounds(t *testing.T) {
	var all []recorder.Operation
	for i := range maxRows + 5 {
		all = append(all, operation(strings.Repeat("x", i+1), recorder.Add, 0, 0, ""))
	}
	line := newTimeline(all)
	if len(line.Rows) != maxRows || line.More != 5 {
		t.Errorf("%d rows, %d more", len(line.Rows), line.More)
	}
	for _, row := range line.Rows {
		for _, b := range row.Bars {
			if b.X < labelWidth || b.X+b.Width > float64(line.Width) || b.Width < leastBar {
				t.Errorf("bar at %v, %v wide", b.X, b.Width)
			}
		}
	}
	if newTimeline(nil) != nil {
		t.Error("a timeline of nothing")
	}
}
