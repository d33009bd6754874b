package crinet_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// leastFaults is how many faults operators are promised to have named.
const leastFaults = 30

// quoted is a span of code that has no backtick in it.
var quoted = regexp.MustCompile("`([^`]+)`")

// TestFaultsAreNamed: each row of the table of faults has the words of a command that a
// test on a real node injects the fault for and waits for.
func TestFaultsAreNamed(t *testing.T) {
	text, err := os.ReadFile(troubleshooting)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "| fault | run | says |")
	if !found {
		t.Fatalf("%s has no table of faults", troubleshooting)
	}
	asserted, rows := literals(t), 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if len(cells) != 5 {
			continue // the head, and what follows the table
		}
		rows++
		test := strings.TrimSpace(cells[4])
		words := quoted.FindAllStringSubmatch(cells[2]+cells[3], -1)
		if len(quoted.FindAllString(cells[2], -1)) == 0 {
			t.Errorf("%s: no words are quoted: %s", troubleshooting, line)
		}
		for _, m := range words {
			if !strings.Contains(asserted[test], m[1]) {
				t.Errorf("%s: the file of %s does not wait for %q", troubleshooting, test, m[1])
			}
		}
	}
	if rows < leastFaults {
		t.Errorf("%s has %d faults, want %d or more", troubleshooting, rows, leastFaults)
	}
}

// literals returns, by the name of each integration test, all string literals of its
// file.
func literals(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("integration/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		var texts strings.Builder
		ast.Inspect(parsed, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if text, err := strconv.Unquote(l.Value); err == nil {
					texts.WriteString(text + "\n")
				}
			}
			return true
		})
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && strings.HasPrefix(f.Name.Name, "Test") {
				all[f.Name.Name] = texts.String()
			}
		}
	}
	return all
}
