package doctor

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The table of docs/doctor.md is that of the checks. CRINET_UPDATE_DOCS=1 writes it.
func TestDocumented(t *testing.T) {
	const file, begin, end = "../docs/doctor.md", "<!-- checks -->\n", "<!-- end of checks -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(text), begin)
	_, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatalf("%s has no table of checks", file)
	}
	var b strings.Builder
	concern := ""
	for _, c := range Checks() {
		if c.Concern != concern {
			concern = c.Concern
			fmt.Fprintf(&b, "\n### %s\n\n| check | looks at | otherwise | severity |\n|---|---|---|---|\n", concern)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", c.Name, c.Looks, c.Why, c.Severity)
	}
	want := before + begin + b.String() + "\n" + end + after
	if want == string(text) {
		return
	}
	if os.Getenv("CRINET_UPDATE_DOCS") == "" {
		t.Fatalf("the table of %s is not that of the checks: run this test with CRINET_UPDATE_DOCS=1", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
