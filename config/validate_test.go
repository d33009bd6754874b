package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

func TestValidateFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files{
		"good.conflist": one("a", "1.0.0", `{"type":"bridge","capabilities":{"ipRanges":true,"mac":true},"ipam":{"type":"host-local"}},{"type":"nobody-has-it"}`),
		"plain.conf":    seedBridge, "broken.conflist": "{\n  \"name\": \"a\",\n  \"plugins\": [,]\n}",
		"old.conflist": one("b", "9.0.0", `{"type":"bridge"}`), "a.txt": seedBridge, ".hidden.conf": seedBridge, "empty.json": "",
		"c/": "", "c/1.conf": `{"type":"tuning"}`, "folder.conflist": list1("c"),
		"d/": "", "d/1.conf": "{", "brokenfolder.conflist": list1("d"), "dir.conf/": "", "climb.conflist": list1(".."),
	}.make(t, dir)
	for _, tt := range []struct{ file, want string }{
		{"good.conflist", "a [1.0.0] [bridge nobody-has-it] [ipRanges mac] true"},
		{"plain.conf", "mynet [0.3.0] [bridge] [] false"},
		{"folder.conflist", "c [1.0.0] [bridge tuning] [] false"},
		{"broken.conflist", "D/broken.conflist:3:15: is broken: invalid character ',' looking for beginning of value"},
		{"brokenfolder.conflist", "D/d/1.conf:1:1: is broken: unexpected end of JSON input"},
		{"old.conflist", "D/old.conflist:1:15: asks for CNI version \"9.0.0\"; known are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"},
		{"empty.json", "D/empty.json: is empty"},
		{"missing.conf", "D/missing.conf: no such file or directory"},
		{"dir.conf", "D/dir.conf: is no regular file"},
		{"climb.conflist", "D/climb.conflist:1:30: network name \"..\" has other characters than letters, digits, '_', '.' and '-', or begins with one of the latter"},
		{"a.txt", "D/a.txt: is not read: a configuration's name ends in .conf, .conflist or .json, and does not begin with a dot"},
		{".hidden.conf", "D/.hidden.conf: is not read: a configuration's name ends in .conf, .conflist or .json, and does not begin with a dot"},
	} {
		valid, problem := ValidateFile(filepath.Join(dir, tt.file), nil)
		got := ""
		switch {
		case (valid == nil) == (problem == nil):
			t.Fatalf("%s: %+v and %v", tt.file, valid, problem)
		case problem != nil:
			got = strings.ReplaceAll(problem.String(), dir, "D")
		default:
			got = fmt.Sprint(valid.Network, " ", valid.CNIVersions, " ", valid.Plugins, " ", valid.Capabilities, " ", valid.NeedsPodCIDR)
		}
		if got != tt.want {
			t.Errorf("%s: %s\nwant %s", tt.file, got, tt.want)
		}
	}
}
