package integration_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// scraped are the metrics of a crinetd that has run a pod: name -> its labels. The
// series of a histogram count as metrics.
func (n *testNode) scraped() map[string]map[string]bool {
	n.t.Helper()
	body, err := n.Metrics(n.ctx)
	n.ok(err)
	label := regexp.MustCompile(`([a-z_]+)="`)
	all := make(map[string]map[string]bool)
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		name := line[:strings.IndexAny(line, "{ ")]
		if all[name] == nil {
			all[name] = map[string]bool{"instance": true, "job": true} // Prometheus' own
		}
		if _, labels, ok := strings.Cut(line, "{"); ok {
			for _, m := range label.FindAllStringSubmatch(labels[:strings.LastIndex(labels, "}")], -1) {
				all[name][m[1]] = true
			}
		}
	}
	return all
}

// wholeMetric is a metric's name without the suffix of a histogram's series.
func wholeMetric(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return name
}

// asked is a metric with the labels that an expression selects by.
var asked = regexp.MustCompile(`\b((?:[a-z_]+:)?(?:crinet|process|go)_[a-z0-9_]+(?::[a-z0-9_]+)?)\b(?:\{([^}]*)\})?`)

// TestMonitoringAsksForWhatThereIs: each metric of the rules and dashboards is one that
// crinetd has, or a rule records, with the labels that it is asked for; each metric of
// crinetd stands in docs/operating.md.
func TestMonitoringAsksForWhatThereIs(t *testing.T) {
	t.Parallel()
	n, client := newSeedNode(t)
	n.ok(n.runPod(client, "pod").StopAndRemove(n.ctx))
	n.awaitScrape("crinet_ipam_pods_free")
	have := n.scraped()

	read := func(pattern string) map[string]string {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(kit.Root(), pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		texts := make(map[string]string)
		for _, file := range files {
			content, err := os.ReadFile(file)
			n.ok(err)
			texts[filepath.Base(file)] = string(content)
		}
		return texts
	}
	files := read("packaging/prometheus/*.yaml")
	for name, content := range files {
		for _, m := range regexp.MustCompile(`- record: (\S+)`).FindAllStringSubmatch(content, -1) {
			have[m[1]] = map[string]bool{"instance": true, "step": true, "plugin": true, "verb": true, "how": true}
		}
		files[name] = regexp.MustCompile(`(?m)^ *(?:#|record:|- record:).*$`).ReplaceAllString(content, "")
	}
	maps.Copy(files, read("packaging/grafana/*.json"))
	seen := 0
	for name, content := range files {
		content = strings.ReplaceAll(content, `\"`, `"`)
		for _, m := range asked.FindAllStringSubmatch(content, -1) {
			seen++
			if have[m[1]] == nil {
				t.Errorf("%s asks for %s, which crinetd does not have", name, m[1])
				continue
			}
			for _, label := range regexp.MustCompile(`([a-z_]+)(?:=|!)`).FindAllStringSubmatch(m[2], -1) {
				if !have[m[1]][label[1]] {
					t.Errorf("%s asks for %s by %s, which it does not have", name, m[1], label[1])
				}
			}
		}
	}
	if seen < 80 {
		t.Errorf("the rules and dashboards were not understood: %d metrics", seen)
	}
	doc := read("docs/operating.md")["operating.md"]
	for _, metric := range slices.Sorted(maps.Keys(have)) {
		if strings.HasPrefix(metric, "crinet_") && !strings.Contains(doc, "`"+wholeMetric(metric)+"`") {
			t.Errorf("docs/operating.md does not have the metric %s", wholeMetric(metric))
		}
	}
	for _, m := range regexp.MustCompile("`(crinet_[a-z_]+)`").FindAllStringSubmatch(doc, -1) {
		if have[m[1]] == nil && have[m[1]+"_count"] == nil && m[1] != "crinet_trace" { // a table
			t.Errorf("docs/operating.md has the metric %s, which crinetd does not have", m[1])
		}
	}
}

// awaitScrape waits until crinetd has a metric.
func (n *testNode) awaitScrape(name string) {
	n.t.Helper()
	for deadline := time.Now().Add(cleanTimeout); n.scraped()[name] == nil; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("crinetd does not get the metric %s", name)
		}
	}
}

// dashboardRules makes rules of all that the dashboards ask, so that Prometheus reads
// that as well.
func dashboardRules(t *testing.T) (file string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(kit.Root(), "packaging/grafana/*.json"))
	if err != nil || len(files) != 2 {
		t.Fatalf("dashboards %q, %v", files, err)
	}
	rules := strings.Builder{}
	rules.WriteString("groups:\n  - name: dashboards\n    rules:\n")
	asks := 0
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			Panels []struct {
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(content, &dashboard); err != nil {
			t.Fatal(err)
		}
		for _, panel := range dashboard.Panels {
			for _, target := range panel.Targets {
				asks++
				expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
				fmt.Fprintf(&rules, "      - record: dashboard:panel:%d\n        expr: %q\n", asks, expr)
			}
		}
	}
	if asks < 50 {
		t.Errorf("the dashboards ask for %d things", asks)
	}
	file = filepath.Join(t.TempDir(), "dashboards.yaml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestPrometheusRules has Prometheus itself read the rules and what the dashboards ask,
// and run the tests of the
// alerts.
func TestPrometheusRules(t *testing.T) {
	t.Parallel()
	promtool := kit.Tool("promtool")
	if _, err := os.Stat(promtool); err != nil {
		t.Fatalf("run `make tools`: %v", err)
	}
	rules, err := filepath.Glob(filepath.Join(kit.Root(), "packaging/prometheus/*.yaml"))
	if err != nil || len(rules) != 2 {
		t.Fatalf("rules %q, %v", rules, err)
	}
	rules = append(rules, dashboardRules(t))
	for _, args := range [][]string{
		append([]string{"check", "rules", "--lint=all", "--lint-fatal"}, rules...),
		{"test", "rules", filepath.Join(kit.Root(), "packaging/prometheus/test/crinet.yaml")},
	} {
		out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "FAILED") {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
