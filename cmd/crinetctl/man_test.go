package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/runtime/admin"
)

// The build makes manual pages and completions with crinetctl itself.
func TestManual(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := run(t.Context(), []string{"man", dir}, new(bytes.Buffer)); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string][]string{
		"crinetd.8":          {".TH CRINETD 8", `\-\-network\-plugin`, ".SH HOSTPORTS", "CRINETD_FLAGS"},
		"crinetctl.8":        {".TH CRINETCTL 8", "\\fBforget\\fR", "Exit codes"},
		"crinetctl-forget.8": {`\-\-reason`, `\-\-run\-dir`, "SANDBOX"},
		"crinetctl-status.8": {"crinetctl\\-status"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s does not have %q:\n%s", page, w, text)
			}
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "'") {
				t.Errorf("%s: %q begins with a control character", page, line)
			}
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{"completion", shell}, &out); err != nil || !strings.Contains(out.String(), "crinetctl") {
			t.Errorf("completion of %s: %v, %d bytes", shell, err, out.Len())
		}
	}
}

// Only a terminal gets colours.
func TestColour(t *testing.T) {
	t.Parallel()
	if isTerminal(new(bytes.Buffer)) {
		t.Error("a buffer counts as a terminal")
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if isTerminal(file) {
		t.Error("a file counts as a terminal")
	}
	for colour, want := range map[bool]string{true: "\x1b[31mno: r\x1b[0m\n", false: "Network ready:   no: r\n"} {
		var out bytes.Buffer
		if err := printStatus(&options{stdout: &out, colour: colour}, admin.Status{Reason: "r"}); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("with colour %t: %v, %q", colour, err, out.String())
		}
	}
}
