// Package crinet_test holds what is true of the whole repository.
package crinet_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const (
	module = "github.com/crinet-project/crinet"
	// maxLines is the most that a file of the product has: one concern each.
	maxLines = 500
)

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
	if len(all) < 10 {
		t.Fatalf("go list finds %d packages", len(all))
	}
	return all
}

// parse returns a package's files.
func parse(t *testing.T, p pkg) (*token.FileSet, []*ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return fset, files
}

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for _, p := range packages(t) {
		_, files := parse(t, p)
		comments := 0
		for _, f := range files {
			if f.Doc != nil {
				comments++
			}
		}
		if comments != 1 {
			t.Errorf("%s has %d package comments, want 1", p.ImportPath, comments)
		}
	}
}

func TestFilesHaveOneConcern(t *testing.T) {
	for _, p := range packages(t) {
		fset, files := parse(t, p)
		for _, f := range files {
			file := fset.File(f.Pos())
			if n := file.LineCount(); n > maxLines {
				t.Errorf("%s has %d lines, at most %d are meant", file.Name(), n, maxLines)
			}
		}
	}
}

// enginesOwn is what the engine imports, and why.
var enginesOwn = map[string]string{
	"cni":              "Attachment",
	"cni/wire":         "the CNI error",
	"hostport":         "Pod, Mapping, Reservation",
	"runtime/journal":  "Record",
	"internal/backoff": "waits",
}

// TestEngineKnowsNoTransport: the engine is driven by whoever serves CRI and CNI.
func TestEngineKnowsNoTransport(t *testing.T) {
	for _, p := range packages(t) {
		if p.ImportPath != module+"/runtime/engine" {
			continue
		}
		for _, imported := range p.Imports {
			if imported == "net" || strings.HasPrefix(imported, "net/http") || strings.HasPrefix(imported, "google.golang.org/grpc") ||
				strings.HasPrefix(imported, "k8s.io/") {
				t.Errorf("runtime/engine imports %s", imported)
			}
		}
		return
	}
	t.Error("there is no runtime/engine")
}

// TestImportsGoDown holds the packages to the order of docs/architecture.md.
func TestImportsGoDown(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, imported := range p.Imports {
			to, ours := strings.CutPrefix(imported, module+"/")
			if !ours {
				continue
			}
			top, _, _ := strings.Cut(from, "/")
			switch {
			case strings.HasPrefix(to, "cmd/"):
				t.Errorf("%s imports %s: nothing imports a command", from, to)
			case strings.HasPrefix(to, "runtime/") && top != "cmd" && top != "runtime" && top != "integration":
				t.Errorf("%s imports %s, which is above it", from, to)
			case from == "runtime/engine" && enginesOwn[to] == "":
				t.Errorf("%s imports %s: the engine sees the other parts through interfaces that it declares", from, to)
			case strings.HasPrefix(to, "integration") && top != "integration":
				t.Errorf("%s imports %s: the product does not need its tests", from, to)
			}
		}
	}
}

// TestNoPackageState: what the daemon knows it knows in values that somebody
// made, so that two can stand side by side. Variables that nobody assigns to,
// such as errors and tables, are no state.
func TestNoPackageState(t *testing.T) {
	for _, p := range packages(t) {
		if path.Base(path.Dir(p.ImportPath)) == "cmd" || strings.Contains(p.ImportPath, "/integration") {
			continue
		}
		_, files := parse(t, p)
		variables := make(map[string]bool)
		for _, f := range files {
			for _, decl := range f.Decls {
				if g, ok := decl.(*ast.GenDecl); ok && g.Tok == token.VAR {
					for _, spec := range g.Specs {
						for _, name := range spec.(*ast.ValueSpec).Names {
							variables[name.Name] = true
						}
					}
				}
			}
		}
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if a, ok := n.(*ast.AssignStmt); ok && a.Tok != token.DEFINE {
					for _, left := range a.Lhs {
						if id, ok := left.(*ast.Ident); ok && variables[id.Name] && !isLocal(f, id) {
							t.Errorf("%s assigns to the package's variable %s", p.ImportPath, id.Name)
						}
					}
				}
				return true
			})
		}
	}
}

// isLocal says whether a name is also declared inside a function of the file,
// so that the assignment may be to that.
func isLocal(f *ast.File, id *ast.Ident) bool {
	local := false
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || id.Pos() < fn.Pos() || id.Pos() > fn.End() {
			continue
		}
		ast.Inspect(fn, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field:
				for _, name := range n.Names {
					local = local || name.Name == id.Name
				}
			case *ast.AssignStmt:
				for _, left := range n.Lhs {
					if l, ok := left.(*ast.Ident); ok && n.Tok == token.DEFINE {
						local = local || l.Name == id.Name
					}
				}
			case *ast.ValueSpec:
				for _, name := range n.Names {
					local = local || name.Name == id.Name
				}
			}
			return true
		})
	}
	return local
}
