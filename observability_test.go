package crinet_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	troubleshooting = "docs/troubleshooting.md"
	alertRules      = "packaging/prometheus/crinet-alerts.yaml"
	alertTests      = "packaging/prometheus/test/crinet.yaml"
)

func text(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// anchors returns the sections of a document as links name them.
func anchors(t *testing.T, file string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	drop := regexp.MustCompile(`[^a-z0-9 -]`)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text(t, file), -1) {
		all[strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return all
}

// TestAlertsHaveRunbooks: each alert says what is wrong and how bad that is, has a
// section of the troubleshooting document, and a test that it fires.
func TestAlertsHaveRunbooks(t *testing.T) {
	sections, tests := anchors(t, troubleshooting), text(t, alertTests)
	used := make(map[string]bool)
	alerts := strings.Split(text(t, alertRules), "- alert: ")[1:]
	for _, alert := range alerts {
		name, _, _ := strings.Cut(alert, "\n")
		for _, key := range []string{"expr", "severity", "summary", "description", "runbook_url"} {
			if !regexp.MustCompile(`(?m)^ +` + key + `: \S`).MatchString(alert) {
				t.Errorf("%s has no %s", name, key)
			}
		}
		if severity := regexp.MustCompile(`severity: (.+)`).FindStringSubmatch(alert); !slices.Contains([]string{"info", "warning", "critical"}, severity[1]) {
			t.Errorf("%s has the severity %s", name, severity[1])
		}
		link := regexp.MustCompile(`runbook_url: (.+)`).FindStringSubmatch(alert)[1]
		anchor, ok := strings.CutPrefix(link, troubleshooting+"#")
		if !ok || !sections[anchor] {
			t.Errorf("%s has the runbook %s, which does not exist", name, link)
		}
		used[anchor] = true
		if !strings.Contains(tests, "\n  - name: "+name+"\n") {
			t.Errorf("%s has no test in %s", name, alertTests)
		}
	}
	if len(alerts) < 15 {
		t.Errorf("%s was not understood: %d alerts", alertRules, len(alerts))
	}
	for _, m := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(text(t, troubleshooting), -1) {
		if !sections[m[1]] {
			t.Errorf("%s links to its section %s, which does not exist", troubleshooting, m[1])
		}
	}
}

// TestDashboards: they can be imported, and each panel asks for something and lies
// over no other.
func TestDashboards(t *testing.T) {
	files, err := filepath.Glob("packaging/grafana/*.json")
	if err != nil || len(files) != 2 {
		t.Fatalf("dashboards %q, %v", files, err)
	}
	uids := make(map[string]bool)
	for _, file := range files {
		var d struct {
			UID, Title string
			Panels     []struct {
				ID          int
				Type, Title string
				GridPos     struct{ X, Y, W, H int }
				Targets     []struct{ Expr, RefID string }
			}
		}
		if err := json.Unmarshal([]byte(text(t, file)), &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID == "" || d.Title == "" || uids[d.UID] {
			t.Errorf("%s: uid %q, title %q", file, d.UID, d.Title)
		}
		uids[d.UID] = true
		taken, ids := make(map[[2]int]string), make(map[int]bool)
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %d %q has no id of its own, no title or asks for nothing", file, p.ID, p.Title)
			}
			ids[p.ID] = true
			refs := make(map[string]bool)
			for _, target := range p.Targets {
				refs[target.RefID] = true
			}
			if len(refs) != len(p.Targets) {
				t.Errorf("%s: %q: the targets are %v", file, p.Title, slices.Sorted(maps.Keys(refs)))
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
						t.Errorf("%s: %q lies over %q or beyond the edge", file, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
		}
	}
}
