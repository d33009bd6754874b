package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/probe"
)

func TestScanConfList(t *testing.T) {
	t.Parallel()
	plugins, _ := standard(t)
	tests := []struct {
		name, file, content, want string
		mtu                       int
	}{
		{"inlined, values kept", "a.conflist", "{\n \"disableCheck\": \"true\", \"x\\u00e9\": {\"b\": 1.10, \"a\": 12345678901234567890},\n \"cniVersions\": [\"0.4.0\", \"1.0.0\"], \"name\": \"a\",\n" +
			" \"plugins\": [ {\"type\": \"bridge\", \"z\": 1e2, \"y\": \"\\u003c < é\"} ], \"loadOnlyInlinedPlugins\": false, \"disableGC\": true}",
			`{"cniVersion":"1.0.0","name":"a","loadOnlyInlinedPlugins":true,"disableCheck":"true","xé":{"b":1.10,"a":12345678901234567890},"disableGC":true,"plugins":[{"type":"bridge","z":1e2,"y":"\u003c < é"}]}`, 0},
		{"mtu", "a.conflist", `{"cniVersion":"1.0.0","name":"a","plugins":[ { "type":"bridge"},{"type":"portmap","mtu":0},{"type":"old","MTU":9000}]}`,
			`{"cniVersion":"1.0.0","name":"a","loadOnlyInlinedPlugins":true,"plugins":[{"mtu":1400,"type":"bridge"},{"type":"portmap","mtu":0},{"type":"old","MTU":9000}]}`, 1400},
		{"the seed's bridge with an mtu", "a.conf", seedBridge,
			`{"cniVersion":"0.3.0","name":"mynet","loadOnlyInlinedPlugins":true,"plugins":[{"mtu":1400,` + seedBridge[1:] + `]}`, 1400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := &Dir{Path: "/c", Files: []File{{Name: tt.file, Data: []byte(tt.content)}}}
			s := Scan(dir, plugins, nil, ScanOptions{MTU: tt.mtu})
			if len(s.Networks) != 1 {
				t.Fatalf("problems: %v", s.Problems)
			}
			if diff := cmp.Diff(tt.want, string(s.Networks[0].ConfList)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkNetwork(t, s.Networks[0])
		})
	}
}

// What was good stays while the file is broken, and only then.
func TestScanLastGood(t *testing.T) {
	t.Parallel()
	plugins, binDir := standard(t)
	file := func(content string) *Dir {
		return &Dir{Path: "/c", Files: []File{{Name: "a.conflist", Data: []byte(content)}, {Name: "b.conflist", Data: []byte(list1("b"))}}}
	}
	failing := func(err error) *Dir {
		d := file("")
		d.Files[0] = File{Name: "a.conflist", Err: err}
		return d
	}
	const b = "b.conflist: b 1.0.0 bridge\n"
	good, stale := "a.conflist: a 1.0.0 bridge\n"+b, "a.conflist: a 1.0.0 bridge STALE\n"+b
	kept := "; its last good version is used\n"
	steps := []struct {
		name    string
		dir     *Dir
		plugins *probe.Plugins
		want    string
	}{
		{"good", file(list1("a")), plugins, good},
		{"half-written", file(list1("a")[:20]), plugins, stale + "stale[a] conf/a.conflist:1:20: is broken: unexpected end of JSON input" + kept},
		{"empty", file(""), plugins, stale + "stale[a] conf/a.conflist: is empty" + kept},
		{"not readable", failing(&fs.PathError{Op: "open", Path: "a.conflist", Err: syscall.EIO}), plugins, stale + "stale[a] conf/a.conflist: input/output error" + kept},
		{"its plugin gone, too", file(""), nil, "stale[a] conf/a.conflist: is empty" + kept + "unusable[a] conf/a.conflist: plugin bridge is not in \nunusable[b] conf/b.conflist: plugin bridge is not in \n"},
		{"its plugin back", file(""), plugins, stale + "stale[a] conf/a.conflist: is empty" + kept},
		{"good again, and new", file(one("a2", "1.0.0", `{"type":"loopback"}`)), plugins, "a.conflist: a2 1.0.0 loopback\n" + b},
		{"the folder is broken", &Dir{Path: "/c", Files: file(list1("a2")).Files, Folders: map[string]*Dir{"a2": {Path: "/c/a2", Files: []File{{Name: "1.conf"}}}}}, plugins,
			"a.conflist: a2 1.0.0 loopback STALE\n" + b + "stale[a2] conf/a2/1.conf: is empty" + kept},
		{"the folder is not readable", &Dir{Path: "/c", Files: file(list1("a2")).Files, Folders: map[string]*Dir{"a2": {Path: "/c/a2", Err: syscall.EACCES}}}, plugins,
			"a.conflist: a2 1.0.0 loopback STALE\n" + b + "stale[a2] conf/a2: cannot be read: permission denied" + kept},
		{"the conf dir is not readable", &Dir{Path: "/c", Err: &fs.PathError{Op: "open", Path: "/c", Err: syscall.EIO}}, plugins,
			"dir: cannot be read: input/output error\na.conflist: a2 1.0.0 loopback STALE\nb.conflist: b 1.0.0 bridge STALE\n" +
				"stale[a2] conf/a.conflist: the directory cannot be read: input/output error" + kept +
				"stale[b] conf/b.conflist: the directory cannot be read: input/output error" + kept},
		{"readable again", file(list1("a")), plugins, good},
		{"a symlink to nothing", failing(fs.ErrNotExist), plugins, b + "broken[] conf/a.conflist: is a symlink to nothing\n"},
		{"then broken: it was gone", file("{"), plugins, b + "broken[] conf/a.conflist:1:1: is broken: unexpected end of JSON input\n"},
		{"good once more", file(list1("a")), plugins, good},
		{"removed", &Dir{Path: "/c"}, plugins, ""},
		{"made anew, broken", file("{"), plugins, b + "broken[] conf/a.conflist:1:1: is broken: unexpected end of JSON input\n"},
		{"the conf dir is gone", &Dir{Path: "/c", Err: fs.ErrNotExist}, plugins, "dir: does not exist\n"},
		{"a file in its place", &Dir{Path: "/c", Err: syscall.ENOTDIR}, plugins, "dir: is no directory\n"},
	}
	var s *Snapshot
	for _, step := range steps {
		before := s
		s = Scan(step.dir, step.plugins, s, ScanOptions{})
		if diff := cmp.Diff(step.want, strings.ReplaceAll(dump(s, binDir), "/c/", "conf/")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if before != nil && before.same(s) {
			t.Errorf("%s: not seen as a change", step.name)
		}
	}
}

func TestReadDir(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if d := ReadDir(root + "/missing"); !errors.Is(d.Err, fs.ErrNotExist) {
		t.Errorf("missing: %v", d.Err)
	}
	if err := os.WriteFile(root+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if d := ReadDir(root + "/file"); !errors.Is(d.Err, syscall.ENOTDIR) {
		t.Errorf("a file: %v", d.Err)
	}
	if err := syscall.Mkfifo(root+"/pipe.conf", 0o644); err != nil { // must not block
		t.Fatal(err)
	}
	for i := range maxFiles {
		if err := os.WriteFile(fmt.Sprintf("%s/a%03d.conf", root, i), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := ReadDir(root)
	last := d.Files[len(d.Files)-1]
	if len(d.Files) != maxFiles+1 || d.Err != nil || last.Err == nil || !strings.Contains(last.Err.Error(), "more than 256") {
		t.Errorf("%d files, the last one %+v, %v", len(d.Files), last, d.Err)
	}
	if err := os.Remove(root + "/a000.conf"); err != nil {
		t.Fatal(err)
	}
	d = ReadDir(root)
	if last := d.Files[len(d.Files)-1]; last.Name != "pipe.conf" || last.Err == nil || errno(last.Err) != "is no regular file" {
		t.Errorf("a pipe: %+v", last)
	}
}

func TestReadDirTotal(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	big := make([]byte, maxFile)
	for i := range maxTotal/maxFile + 2 {
		if err := os.WriteFile(fmt.Sprintf("%s/a%03d.conf", root, i), big, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	d := ReadDir(root)
	for _, f := range d.Files {
		total += len(f.Data)
	}
	if last := d.Files[len(d.Files)-1]; total > maxTotal || last.Err == nil {
		t.Errorf("%d bytes read, the last file %v", total, last.Err)
	}
}

func FuzzScan(f *testing.F) {
	plugins, _ := standard(f)
	for _, seed := range []string{seedBridge, flannelList, list1("a"), `{"name":"a","cniVersions":["1.0.0"],"plugins":[{"type":"bridge","mtu":1}]}`,
		"", "{", "null", `{"name":"a","plugins":[{"type":"bridge"},null,1]}`, `{"name":"a","name":"b","type":"bridge","Type":"loopback"}`, `{"":{}}`, "\xff", strings.Repeat("[", 20000)} {
		f.Add([]byte(seed), []byte(`{"type":"portmap"}`), 1400)
	}
	f.Fuzz(func(t *testing.T, data, inFolder []byte, mtu int) {
		dir := &Dir{Path: "/c", Folders: map[string]*Dir{"a": {Path: "/c/a", Files: []File{{Name: "1.conf", Data: inFolder}}}}}
		for _, name := range []string{"1.conflist", "2.conf", "3.json"} {
			dir.Files = append(dir.Files, File{Name: name, Data: data})
		}
		good := Scan(&Dir{Path: "/c", Files: []File{{Name: "1.conflist", Data: []byte(list1("good"))}}}, plugins, nil, ScanOptions{})
		s := Scan(dir, plugins, good, ScanOptions{MTU: max(mtu, 0)})
		if len(s.Networks)+len(s.Problems) == 0 {
			t.Fatal("neither a network nor a problem")
		}
		for _, n := range s.Networks {
			checkNetwork(t, n)
			// What was written is read as the same again.
			again := Scan(&Dir{Path: "/c", Files: []File{{Name: "x.conflist", Data: n.ConfList}}}, plugins, nil, ScanOptions{MTU: max(mtu, 0)})
			if len(again.Networks) != 1 || string(again.Networks[0].ConfList) != string(n.ConfList) {
				t.Fatalf("%s\nis read as %v %v", n.ConfList, again.Networks, again.Problems)
			}
		}
		for _, p := range s.Problems {
			if p.Reason == "" || p.File == "" || p.Line < 0 || (p.Line > 0) != (p.Col > 0) {
				t.Fatalf("%+v", p)
			}
		}
		for _, name := range []string{"cni", "a", "bridge", "nope"} {
			if n, err := s.Select(name); (n == nil) == (err == nil) || (err != nil && len(err.Error()) > maxSelectError) {
				t.Fatalf("Select(%s): %v, %v", name, n, err)
			}
		}
	})
}
