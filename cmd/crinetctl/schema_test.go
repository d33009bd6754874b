package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// schemaFile documents what the commands print with -o json.
const schemaFile = "../../docs/json.md"

const schemaHead = `# JSON

What crinetctl's commands print with ` + "`-o json`" + `, made from the types that print it (` + "`go test ./cmd/crinetctl -update`" + `). A field whose name ends with ? is left out when it has nothing to say. Within a release fields are added, and none is removed or changes its meaning; programs must not mind fields that they do not know.
`

// printed are the types that each command prints, by folder and name; [] is a list.
var printed = []struct{ command, typ string }{
	{"status", "runtime/admin.Status"},
	{"pods", "[]runtime/admin.Pod"},
	{"why POD", "runtime/why.Story"},
	{"why", "[]cmd/crinetctl.podFailure"},
	{"doctor", "doctor.Report"},
	{"doctor --list", "[]doctor.Check"},
	{"test", "cmd/crinetctl.tested"},
	{"bugreport", "runtime/bugreport.Summary"},
	{"probe", "runtime/admin.Plugins"},
	{"validate FILE", "[]cmd/crinetctl.validation"},
	{"forget SANDBOX", "[]runtime/admin.Pod"},
}

// TestSchema holds docs/json.md to the types.
func TestSchema(t *testing.T) {
	s := &schema{t: t, packages: make(map[string]map[string]*declared), done: make(map[string]bool)}
	s.WriteString(schemaHead)
	s.WriteString("\n| command | prints |\n|---|---|\n")
	for _, p := range printed {
		fmt.Fprintf(s, "| `crinetctl %s` | %s |\n", p.command, s.link(p.typ))
	}
	for len(s.todo) > 0 {
		next := s.todo[0]
		s.todo = s.todo[1:]
		s.document(next)
	}
	if *update {
		if err := os.WriteFile(schemaFile, []byte(s.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != s.String() {
		t.Errorf("%s is not what the types say: go test ./cmd/crinetctl -update", schemaFile)
	}
}

// schema is the document while it is written.
type schema struct {
	strings.Builder
	t        *testing.T
	packages map[string]map[string]*declared // folder -> type -> what its source says
	todo     []string                        // types to be documented
	done     map[string]bool
}

// declared is a type of the source.
type declared struct {
	doc     string
	expr    ast.Expr
	imports map[string]string // name -> folder, of our packages
	values  []string          // of a type of strings
}

const module = "github.com/crinet-project/crinet/"

// find returns a type of a package.
func (s *schema) find(typ string) (folder string, d *declared) {
	s.t.Helper()
	i := strings.LastIndexByte(typ, '.')
	folder, name := typ[:i], typ[i+1:]
	if s.packages[folder] == nil {
		s.packages[folder] = s.load(folder)
	}
	d = s.packages[folder][name]
	if d == nil {
		s.t.Fatalf("there is no type %s", typ)
	}
	return folder, d
}

// load reads the types of a package.
func (s *schema) load(folder string) map[string]*declared {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", folder, "*.go"))
	if err != nil {
		s.t.Fatal(err)
	}
	types := make(map[string]*declared)
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			s.t.Fatal(err)
		}
		imports := make(map[string]string)
		for _, i := range file.Imports {
			if path, err := strconv.Unquote(i.Path.Value); err == nil {
				imports[filepath.Base(path)], _ = strings.CutPrefix(path, module)
			}
		}
		for _, decl := range file.Decls {
			if g, ok := decl.(*ast.GenDecl); ok {
				collect(types, g, imports)
			}
		}
	}
	return types
}

// collect adds the types of a declaration, and to types of strings their values.
func collect(types map[string]*declared, g *ast.GenDecl, imports map[string]string) {
	for _, spec := range g.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			d := types[spec.Name.Name]
			if d == nil {
				d = &declared{}
				types[spec.Name.Name] = d
			}
			d.expr, d.imports, d.doc = spec.Type, imports, text(g.Doc, spec.Doc)
		case *ast.ValueSpec:
			name, ok := spec.Type.(*ast.Ident)
			if !ok || g.Tok != token.CONST || len(spec.Values) != 1 {
				continue
			}
			if l, ok := spec.Values[0].(*ast.BasicLit); ok && l.Kind == token.STRING {
				if types[name.Name] == nil {
					types[name.Name] = &declared{}
				}
				types[name.Name].values = append(types[name.Name].values, l.Value)
			}
		}
	}
}

// text is the first comment in one line.
func text(groups ...*ast.CommentGroup) string {
	for _, g := range groups {
		if g != nil {
			return strings.ReplaceAll(strings.Join(strings.Fields(g.Text()), " "), "|", "\\|")
		}
	}
	return ""
}

// link names a type, and has it documented.
func (s *schema) link(typ string) string {
	if element, list := strings.CutPrefix(typ, "[]"); list {
		return "list of " + s.link(element)
	}
	if !s.done[typ] {
		s.done[typ] = true
		s.todo = append(s.todo, typ)
	}
	title := heading(typ)
	return fmt.Sprintf("[%s](#%s)", title, strings.ReplaceAll(strings.ToLower(title), " ", "-"))
}

// heading is a type's title: its package's name and its own.
func heading(typ string) string {
	i := strings.LastIndexByte(typ, '.')
	return filepath.Base(typ[:i]) + " " + typ[i+1:]
}

// document writes the section of one type.
func (s *schema) document(typ string) {
	s.t.Helper()
	folder, d := s.find(typ)
	fmt.Fprintf(s, "\n## %s\n\n%s\n", heading(typ), d.doc)
	fields, ok := d.expr.(*ast.StructType)
	if !ok {
		s.t.Fatalf("%s is no struct", typ)
	}
	s.WriteString("\n| field | type | |\n|---|---|---|\n")
	s.fields(folder, d, fields)
}

// fields writes the rows of a struct, with those of structs that are embedded.
func (s *schema) fields(folder string, d *declared, of *ast.StructType) {
	about := "" // a comment is for the fields below it as well
	for _, f := range of.Fields.List {
		if comment := text(f.Doc, f.Comment); comment != "" {
			about = comment
		} else if f.Doc == nil && !documentedAbove(of, f) {
			about = ""
		}
		if len(f.Names) == 0 {
			inner := s.named(folder, d, f.Type)
			innerFolder, innerType := s.find(inner)
			if fields, ok := innerType.expr.(*ast.StructType); ok {
				s.fields(innerFolder, innerType, fields)
			}
			continue
		}
		name, omitted := tag(f)
		if name == "" {
			continue
		}
		if omitted {
			name += "?"
		}
		fmt.Fprintf(s, "| `%s` | %s | %s |\n", name, s.typeOf(folder, d, f.Type), about)
	}
}

// documentedAbove says whether the field before names this one in its comment.
func documentedAbove(of *ast.StructType, field *ast.Field) bool {
	comment := ""
	for _, f := range of.Fields.List {
		if c := text(f.Doc, f.Comment); c != "" {
			comment = c
		}
		if f == field {
			return len(f.Names) > 0 && strings.Contains(comment, f.Names[0].Name)
		}
	}
	return false
}

// tag is a field's name in JSON, empty for one that is not printed.
func tag(f *ast.Field) (name string, omitted bool) {
	if f.Tag == nil {
		return "", false
	}
	text, err := strconv.Unquote(f.Tag.Value)
	if err != nil {
		return "", false
	}
	name, options, _ := strings.Cut(reflect.StructTag(text).Get("json"), ",")
	if name == "-" {
		return "", false
	}
	return name, strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
}

// named is the full name of a type of ours.
func (s *schema) named(folder string, d *declared, e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return folder + "." + e.Name
	case *ast.SelectorExpr:
		if pkg, ok := e.X.(*ast.Ident); ok {
			return d.imports[pkg.Name] + "." + e.Sel.Name
		}
	}
	s.t.Fatalf("no name for %v", e)
	return ""
}

// typeOf says in words what type a field has.
func (s *schema) typeOf(folder string, d *declared, e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return s.typeOf(folder, d, e.X)
	case *ast.ArrayType:
		return "list of " + s.typeOf(folder, d, e.Elt)
	case *ast.MapType:
		return "object: " + s.typeOf(folder, d, e.Key) + " to " + s.typeOf(folder, d, e.Value)
	case *ast.Ident:
		switch e.Name {
		case "string":
			return "string"
		case "bool":
			return "true or false"
		case "int", "int64", "uint64", "uint32", "float64":
			return "number"
		}
	case *ast.SelectorExpr:
		if pkg, ok := e.X.(*ast.Ident); ok {
			switch pkg.Name + "." + e.Sel.Name {
			case "time.Time":
				return "time (RFC 3339)"
			case "json.RawMessage":
				return "JSON"
			}
		}
	}
	typ := s.named(folder, d, e)
	if _, found := s.find(typ); found.values != nil {
		return "string: " + strings.ReplaceAll(strings.Join(found.values, ", "), `"`, "`")
	}
	return s.link(typ)
}
