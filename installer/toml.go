package installer

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// The few things that are read and changed in containerd's configuration are lines of
// TOML. Everything else in the file stays as it is, comments included.

var (
	headerLine  = regexp.MustCompile(`^\s*\[([^\[\]]+)\]\s*(?:#.*)?$`)
	versionLine = regexp.MustCompile(`(?m)^\s*version\s*=\s*(\d+)`)
	importsLine = regexp.MustCompile(`(?ms)^\s*imports\s*=\s*\[(.*?)\]`)
	disabledCRI = regexp.MustCompile(`(?m)^\s*disabled_plugins\s*=\s*\[[^\]]*["'](?:cri|io\.containerd\.grpc\.v1\.cri|io\.containerd\.cri\.v1\.runtime)["']`)
	quoted      = regexp.MustCompile(`["']([^"']*)["']`)
)

// section returns a header's name without quotes and white space; empty for a line
// that is no header.
func section(line string) string {
	m := headerLine.FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	return strings.NewReplacer(`"`, "", `'`, "", " ", "", "\t", "").Replace(m[1])
}

// setTOML sets a key of a section to a value, which is TOML. A section that is missing
// is added at the end, below the header given.
func setTOML(text, header, key, value string) (string, error) {
	want := section(header)
	line := key + " = " + value
	lines := strings.SplitAfter(text, "\n")
	at, indent := -1, "  "
	keyLine := regexp.MustCompile(`^(\s*)` + regexp.QuoteMeta(key) + `\s*=`)
	inlined := regexp.MustCompile(`^\s*` + regexp.QuoteMeta(path.Ext(want)[1:]) + `\s*=`)
	current := ""
	for i, l := range lines {
		if s := section(strings.TrimRight(l, "\n")); s != "" {
			current = s
			if s == want {
				at = i
				indent = l[:len(l)-len(strings.TrimLeft(l, " \t"))] + "  "
			}
			continue
		}
		if m := keyLine.FindStringSubmatch(l); m != nil && current == want {
			lines[i] = m[1] + line + "\n"
			return strings.Join(lines, ""), nil
		}
		if current+path.Ext(want) == want && inlined.MatchString(l) {
			return "", fmt.Errorf("line %d holds %s as one value: write it as a section [%s]", i+1, path.Ext(want)[1:], want)
		}
	}
	if at >= 0 {
		lines[at] = strings.TrimRight(lines[at], "\n") + "\n" + indent + line + "\n"
		return strings.Join(lines, ""), nil
	}
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return text + "\n" + header + "\n" + indent + line + "\n", nil
}

// dropInDir returns the folder from which a configuration imports all files *.toml;
// empty if there is none.
func dropInDir(text string) string {
	m := importsLine.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	for _, q := range quoted.FindAllStringSubmatch(m[1], -1) {
		if path.IsAbs(q[1]) && path.Base(q[1]) == "*.toml" {
			return path.Dir(q[1])
		}
	}
	return ""
}
