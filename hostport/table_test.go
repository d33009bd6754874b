package hostport

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// listTable is `nft list table inet crinet`, with one element a line, sorted.
func listTable(t testing.TB, ns netns) string {
	t.Helper()
	return normalize(ns.run(t, "nft", "list", "table", "inet", tableName))
}

// normalize puts each element of a set on a line of its own, and sorts them.
func normalize(listing string) string {
	var out, elements []string
	inElements := false
	for line := range strings.Lines(listing) {
		line = strings.TrimRight(line, "\n")
		text := strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(text, "elements = {"); ok {
			inElements, text = true, rest
		}
		if !inElements {
			out = append(out, line)
			continue
		}
		text, last := strings.CutSuffix(text, "}")
		elements = append(elements, strings.Split(text, ",")...)
		if last {
			inElements = false
			out = append(out, sortedElements(elements)...)
			elements = nil
		}
	}
	return strings.Join(out, "\n") + "\n"
}

func sortedElements(elements []string) []string {
	var lines []string
	for _, e := range elements {
		if e = strings.TrimSpace(e); e != "" {
			lines = append(lines, "\t\telement "+e)
		}
	}
	slices.Sort(lines)
	return lines
}

// documentedTable is the table in the package comment, normalized.
func documentedTable(t *testing.T) string {
	t.Helper()
	source, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", source, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, line := range strings.Split(docOf(file), "\n") {
		line = strings.TrimPrefix(line, "\t")
		if line == "table inet "+tableName+" {" {
			lines = []string{}
		}
		if lines != nil {
			lines = append(lines, line)
			if line == "}" {
				return normalize(strings.Join(lines, "\n") + "\n")
			}
		}
	}
	t.Fatal("doc.go shows no table")
	return ""
}

func docOf(file *ast.File) string { return file.Doc.Text() }

// split separates the elements of a normalized table from the rest.
func split(table string) (rest string, elements []string) {
	for line := range strings.Lines(table) {
		if e, ok := strings.CutPrefix(line, "\t\telement "); ok {
			elements = append(elements, strings.TrimSuffix(e, "\n"))
		} else {
			rest += line
		}
	}
	return rest, elements
}

// TestTableIsAsDocumented holds the kernel's table against the package comment.
func TestTableIsAsDocumented(t *testing.T) {
	n := newTestNode(t, "cni0")
	n.node.run(t, "ip", "link", "add", kubeIPVS, "type", "bridge")
	n.node.address(t, kubeIPVS, "10.96.0.1/32", "fd00:96::1/128")
	web := n.addPod(t, "web", 2)
	m := newManager(t, n.node)
	pod := web.pod(t, "tcp 80:8080", "udp 127.0.0.1 53:5353", "tcp 2001:db8:1::1 443:8443")
	pod.Masquerade = subnets(pod.IPs, 24, 64)
	mustMap(t, m, pod)
	if diff := cmp.Diff(documentedTable(t), listTable(t, n.node)); diff != "" {
		t.Errorf("the table differs from the package comment (-documented +kernel):\n%s", diff)
	}
}

// TestTable compares the elements for many kinds of mappings, and the table that is
// left when the pods go with the empty one.
func TestTable(t *testing.T) {
	both := []string{"10.1.0.2", "fd00:1::2"}
	const hairpin4 = `10.1.0.2 . 10.1.0.2 comment "default/web"`
	const hairpin6 = `fd00:1::2 . fd00:1::2 comment "default/web"`
	long := strings.Repeat("long-", 30)
	for _, test := range []struct {
		name string
		pods []Pod
		want []string
	}{
		{"empty", nil, nil},
		{"any address", []Pod{testPod(t, "web", both, "tcp 80:8080")}, []string{
			`tcp . 80 comment "default/web" : 10.1.0.2 . 8080`, hairpin4,
			`tcp . 80 comment "default/web" : fd00:1::2 . 8080`, hairpin6,
		}},
		{"IPv4 pod", []Pod{testPod(t, "web", both[:1], "tcp 80:8080")}, []string{
			`tcp . 80 comment "default/web" : 10.1.0.2 . 8080`, hairpin4,
		}},
		{"IPv6 pod", []Pod{testPod(t, "web", both[1:], "tcp 80:8080")}, []string{
			`tcp . 80 comment "default/web" : fd00:1::2 . 8080`, hairpin6,
		}},
		{"protocols", []Pod{testPod(t, "web", both[:1], "tcp 80:8080", "udp 80:8081", "sctp 80:8082")}, []string{
			`sctp . 80 comment "default/web" : 10.1.0.2 . 8082`,
			`tcp . 80 comment "default/web" : 10.1.0.2 . 8080`,
			`udp . 80 comment "default/web" : 10.1.0.2 . 8081`, hairpin4,
		}},
		{"wildcards", []Pod{testPod(t, "web", both, "tcp 0.0.0.0 80:8080", "udp :: 80:8080")}, []string{
			`tcp . 80 comment "default/web" : 10.1.0.2 . 8080`, hairpin4,
			`udp . 80 comment "default/web" : fd00:1::2 . 8080`, hairpin6,
		}},
		{"addresses", []Pod{testPod(t, "web", both,
			"tcp 192.0.2.1 80:8080", "udp 2001:db8::1 80:8080", "sctp 127.0.0.1 1:65535", "tcp ::1 80:8080")}, []string{
			`127.0.0.1 . sctp . 1 comment "default/web" : 10.1.0.2 . 65535`,
			`192.0.2.1 . tcp . 80 comment "default/web" : 10.1.0.2 . 8080`, hairpin4,
			`2001:db8::1 . udp . 80 comment "default/web" : fd00:1::2 . 8080`,
			`::1 . tcp . 80 comment "default/web" : fd00:1::2 . 8080`, hairpin6,
		}},
		{"several ports and pods", []Pod{
			testPod(t, "web", both[:1], "tcp 80:8080", "tcp 65535:1"),
			testPod(t, "dns", []string{"10.1.0.3"}, "udp 53:53", "tcp 53:53"),
			testPod(t, long, []string{"10.1.0.4"}, "tcp 1:1"),
		}, []string{
			`tcp . 1 comment "default/` + long[:119] + `" : 10.1.0.4 . 1`,
			`tcp . 53 comment "default/dns" : 10.1.0.3 . 53`,
			`tcp . 65535 comment "default/web" : 10.1.0.2 . 1`,
			`tcp . 80 comment "default/web" : 10.1.0.2 . 8080`,
			`udp . 53 comment "default/dns" : 10.1.0.3 . 53`,
			hairpin4,
			`10.1.0.3 . 10.1.0.3 comment "default/dns"`,
			`10.1.0.4 . 10.1.0.4 comment "default/` + long[:119] + `"`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ns := nftNetNS(t)
			m := newManager(t, ns)
			empty := listTable(t, ns)
			for _, pod := range test.pods {
				mustMap(t, m, pod)
			}
			mapped := listTable(t, ns)
			rules, elements := split(mapped)
			if diff := cmp.Diff(test.want, elements); diff != "" {
				t.Errorf("elements (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(empty, rules); diff != "" {
				t.Errorf("more than elements has changed:\n%s", diff)
			}
			if err := m.Sync(t.Context(), test.pods); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(mapped, listTable(t, ns)); diff != "" {
				t.Errorf("Sync changed the table:\n%s", diff)
			}
			for _, pod := range test.pods {
				mustUnmap(t, m, pod.SandboxID)
				mustUnmap(t, m, pod.SandboxID)
			}
			if diff := cmp.Diff(empty, listTable(t, ns)); diff != "" {
				t.Errorf("not empty in the end:\n%s", diff)
			}
		})
	}
}
