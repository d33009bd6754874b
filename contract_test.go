package crinet_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/runtime/socket"
)

const (
	contract  = "docs/contract.md"
	operating = "docs/operating.md"
	unitDir   = "packaging/systemd"
	// openSection is the only part of the contract whose rows need no test.
	openSection = "Open"
)

// testNames returns the tests of a folder, by name, with those of all its test
// packages.
func testNames(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
				names[fn.Name.Name] = true
			}
		}
	}
	return names
}

// row is a row of a Markdown table.
type row struct {
	line    int
	section string
	columns []string // the table's header
	cells   []string
}

// tableRows returns the rows of all tables of a document, without the headers.
func tableRows(t *testing.T, file string) []row {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	var section string
	var columns []string
	for i, line := range strings.Split(string(text), "\n") {
		if title, ok := strings.CutPrefix(line, "## "); ok {
			section = title
		}
		if !strings.HasPrefix(line, "|") {
			columns = nil
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		switch {
		case columns == nil:
			columns = cells
		case strings.Trim(line, "|-: ") != "":
			rows = append(rows, row{i + 1, section, columns, cells})
		}
	}
	return rows
}

// named is how the contract names a test: the folder of its package, a dot, the
// function; without a folder it is one of this package.
var named = regexp.MustCompile("^`(?:([a-z/]+)\\.)?(Test[A-Z][A-Za-z0-9]*)`$")

// TestContract holds each row of docs/contract.md against the tests that there
// are: no cell is empty, and all but what is open names tests that exist.
func TestContract(t *testing.T) {
	known := make(map[string]map[string]bool) // folder -> tests
	tested, sections := 0, make(map[string]bool)
	for _, r := range tableRows(t, contract) {
		sections[r.section] = true
		if len(r.cells) != len(r.columns) || slices.Contains(r.cells, "") {
			t.Errorf("%s:%d: an empty cell, or not %d of them: %q", contract, r.line, len(r.columns), r.cells)
			continue
		}
		if last := r.columns[len(r.columns)-1]; (last == "test") == (r.section == openSection) {
			t.Errorf("%s:%d: the last column is %q: all rows name tests but those of %s", contract, r.line, last, openSection)
			continue
		}
		if r.section == openSection {
			continue
		}
		for name := range strings.SplitSeq(r.cells[len(r.cells)-1], ", ") {
			m := named.FindStringSubmatch(name)
			if m == nil {
				t.Errorf("%s:%d: %q is no test; write `folder.TestName`", contract, r.line, name)
				continue
			}
			dir := filepath.Clean(m[1])
			if known[dir] == nil {
				known[dir] = testNames(t, dir)
			}
			if !known[dir][m[2]] {
				t.Errorf("%s:%d: there is no %s in %s", contract, r.line, m[2], dir)
			}
			tested++
		}
	}
	if tested < 100 || len(sections) < 10 || !sections[openSection] {
		t.Errorf("%s was not understood: %d tests in the sections %v", contract, tested, sections)
	}
}

// TestRowsOfTheLedgerAreUnique: a defect is told once, and a part of it may be
// open besides.
func TestRowsOfTheLedgerAreUnique(t *testing.T) {
	seen := make(map[string]int)
	for _, r := range tableRows(t, contract) {
		if r.columns[0] != "row" {
			continue
		}
		key := r.section + " " + r.cells[0]
		if line, twice := seen[key]; twice {
			t.Errorf("%s:%d: row %s is there in line %d already", contract, r.line, r.cells[0], line)
		}
		seen[key] = r.line
	}
	if len(seen) < 40 {
		t.Errorf("the ledger has %d rows", len(seen))
	}
}

// repoFiles returns the files and folders of the repository.
func repoFiles(t *testing.T) map[string]bool {
	t.Helper()
	files := make(map[string]bool)
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(path, ".") && path != "." && path != ".ci" && !strings.HasPrefix(path, ".ci/")
		if hidden || path == "bin" {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		files[path] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	link     = regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`)
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
	testWord = regexp.MustCompile(`\bTest[A-Z][A-Za-z0-9]+`)
)

// exists says whether a code span that looks like a path of the repository is
// one. Go files may be named by the end of their path.
func exists(files map[string]bool, span string) bool {
	top, _, deep := strings.Cut(span, "/")
	if strings.HasSuffix(span, ".go") {
		for file := range files {
			if file == span || strings.HasSuffix(file, "/"+span) {
				return true
			}
		}
		return false
	}
	return !deep || !files[top] || strings.ContainsAny(span, " *") || files[strings.TrimSuffix(span, "/")]
}

// TestDocsNameWhatExists: the documents link to files that are there, and name
// files and tests that are there.
func TestDocsNameWhatExists(t *testing.T) {
	docs, err := filepath.Glob("docs/*.md")
	if err != nil || len(docs) < 5 {
		t.Fatalf("documents %v, %v", docs, err)
	}
	files, tests := repoFiles(t), make(map[string]bool)
	for file := range files {
		if strings.HasSuffix(file, "_test.go") {
			for name := range testNames(t, filepath.Dir(file)) {
				tests[name] = true
			}
		}
	}
	for _, doc := range append(docs, "README.md", "CONTRIBUTING.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(m[1], "://") && !files[filepath.Join(filepath.Dir(doc), m[1])] {
				t.Errorf("%s links to %s, which does not exist", doc, m[1])
			}
		}
		for _, m := range codeSpan.FindAllStringSubmatch(string(text), -1) {
			if !exists(files, m[1]) && !named.MatchString(m[0]) {
				t.Errorf("%s names the file %s, which does not exist", doc, m[1])
			}
		}
		for _, name := range testWord.FindAllString(string(text), -1) {
			if name != "TestName" && !tests[name] {
				t.Errorf("%s names %s, which does not exist", doc, name)
			}
		}
	}
}

// TestUnits: crinetd comes back however often it fails (review row A22), its sockets
// stay meanwhile, and the unit says why it has each of its settings. docs/operating.md
// explains those that an operator meets.
func TestUnits(t *testing.T) {
	doc, err := os.ReadFile(operating)
	if err != nil {
		t.Fatal(err)
	}
	for unit, wanted := range map[string][]string{
		"crinetd.service": {
			"Type=notify", "Restart=always", "RestartSec=1s", "StartLimitIntervalSec=0", "OOMScoreAdjust=-999", "KillMode=process", "WatchdogSec=60s",
			"Requires=crinetd.socket", "NoNewPrivileges=yes", "ProtectSystem=yes",
		},
		"crinetd.socket": {
			"ListenStream=/run/crinet/cri.sock", "ListenStream=/run/crinet/cni.sock", "ListenStream=/run/crinet/admin.sock",
			"FileDescriptorName=" + socket.ActivationName, "SocketMode=0600", "TriggerLimitIntervalSec=0",
		},
	} {
		text, err := os.ReadFile(filepath.Join(unitDir, unit))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		for _, want := range wanted {
			if !slices.Contains(lines, want) {
				t.Errorf("%s lacks %s", unit, want)
			}
		}
		for _, setting := range []string{"StartLimitIntervalSec", "OOMScoreAdjust", "KillMode", "WatchdogSec"} {
			if !bytes.Contains(doc, []byte("`"+setting)) {
				t.Errorf("%s does not explain %s", operating, setting)
			}
		}
		_, hardening, _ := strings.Cut(string(text), "# What follows holds for the CNI plugins")
		if reason := regexp.MustCompile(`(?m)^\n[A-Z]\w+=`).FindString(hardening); reason != "" {
			t.Errorf("%s: %q has no reason above it", unit, reason)
		}
	}
}

// TestPackagesThatStayAreNamed: the tools' script installs Debian packages, which
// stay on the machine. The README says so, and docs/operating.md names them
// (review row B19).
func TestPackagesThatStayAreNamed(t *testing.T) {
	script, err := os.ReadFile("integration/tools/build")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^packages=\(([^)]+)\)$`).FindSubmatch(script)
	if m == nil {
		t.Fatal("integration/tools/build lists no packages")
	}
	doc, err := os.ReadFile(operating)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(string(m[1])) {
		if !bytes.Contains(doc, []byte("`"+name+"`")) {
			t.Errorf("%s does not name the package %s, which stays", operating, name)
		}
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(readme, []byte("Debian packages")) {
		t.Error("README.md does not say that Debian packages stay")
	}
}
