package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/pluginexec"
)

const answer11 = `{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`

// write puts an executable shell script at path, which counts its runs in a
// file beside the bin dir.
func write(t *testing.T, path, body string) {
	t.Helper()
	writeRaw(t, path, fmt.Sprintf("#!/bin/sh\necho >>%s\n%s\n", runsFile(filepath.Split(path)), body), 0o755)
}

func writeRaw(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	syscall.ForkLock.RLock() // or a fork could hold the file open for writing
	defer syscall.ForkLock.RUnlock()
	tmp := filepath.Join(filepath.Dir(path), ".new")
	if err := os.WriteFile(tmp, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func runsFile(binDir, name string) string { return filepath.Clean(binDir) + "." + name + ".runs" }

func runs(t *testing.T, binDir, name string) int {
	t.Helper()
	b, err := os.ReadFile(runsFile(binDir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(b)
}

func probe(t *testing.T, p *Prober) *Plugins {
	t.Helper()
	set, err := p.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func says(answer string) string { return "cat >/dev/null; echo '" + answer + "'" }

func TestProbe(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	one, two, missing, noDir := root+"/one", root+"/two", root+"/missing", root+"/file"
	writeRaw(t, noDir, "", 0o644)
	write(t, one+"/bridge", says(answer11))
	write(t, two+"/bridge", "exit 9")
	write(t, two+"/portmap", says(answer11))
	writeRaw(t, one+"/portmap", "not executable here, but in two", 0o644)
	writeRaw(t, one+"/LICENSE", "text", 0o644)
	writeRaw(t, one+"/.hidden", "#!/bin/sh\nexit 1\n", 0o755)
	write(t, one+"/old", says(`{"cniVersion":"0.2.0"}`))
	write(t, one+"/odd", says(`{"cniVersion":"1.0.0","supportedVersions":["","one","1.0.0","1.0.0","`+strings.Repeat("1", 40)+`"]}`))
	write(t, one+"/crinet", "exit 1")
	write(t, one+"/garbage", "echo hello")
	write(t, one+"/empty", "exit 0")
	write(t, one+"/none", says(`{"cniVersion":"1.0.0","supportedVersions":["x"]}`))
	write(t, one+"/loud", "exec cat /dev/zero")
	write(t, one+"/fails", "echo 'no such verb' >&2; exit 1")
	write(t, one+"/objects", says(`{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}`)+"; exit 1")
	write(t, one+"/silent", "exit 1")
	write(t, one+"/crash", "kill -SEGV $$")
	write(t, one+"/hangs", "exec sleep 60")
	writeRaw(t, one+"/elf", "\x7fELF and no more", 0o755)
	if err := os.Mkdir(one+"/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "bridge", "dangling": "nowhere", "dirlink": "folder"} {
		if err := os.Symlink(target, one+"/"+name); err != nil {
			t.Fatal(err)
		}
	}
	versions := []string{"0.4.0", "1.0.0", "1.1.0"}
	p := New([]string{missing, one, two, noDir}, Config{Timeout: 4 * time.Second})
	set := probe(t, p)
	want := []Plugin{
		{Name: "bridge", Path: one + "/bridge", Versions: versions, Shadowed: []string{two + "/bridge"}},
		{Name: "crash", Path: one + "/crash", Reason: "is no CNI plugin: it ends with signal 11 (segmentation fault) when asked for its VERSION"},
		{Name: "crinet", Path: one + "/crinet", Reason: "is crinet's own shim, which is no network's plugin"},
		{Name: "elf", Path: one + "/elf", Reason: "cannot be executed: exec format error"},
		{Name: "empty", Path: one + "/empty", Reason: "is no CNI plugin: its answer to VERSION is empty"},
		{Name: "fails", Path: one + "/fails", Reason: `is no CNI plugin: it ends with exit status 1 when asked for its VERSION: "no such verb"`},
		{Name: "garbage", Path: one + "/garbage", Reason: `is no CNI plugin: its answer to VERSION cannot be read: decoding version info: invalid character 'h' looking for beginning of value: "hello\n"`},
		{Name: "hangs", Path: one + "/hangs", Reason: "hangs: no answer to VERSION within 4s; it is not run again until the file changes"},
		{Name: "link", Path: one + "/link", Versions: versions},
		{Name: "loud", Path: one + "/loud", Reason: "is no CNI plugin: it answers VERSION with more than 65536 bytes"},
		{Name: "none", Path: one + "/none", Reason: `is no CNI plugin: its answer to VERSION names no version: "{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"x\"]}\n"`},
		{Name: "objects", Path: one + "/objects", Reason: `is no CNI plugin: it ends with exit status 1 when asked for its VERSION: "unknown CNI_COMMAND: VERSION"`},
		{Name: "odd", Path: one + "/odd", Versions: []string{"1.0.0"}},
		{Name: "old", Path: one + "/old", Versions: []string{"0.1.0", "0.2.0"}},
		{Name: "portmap", Path: two + "/portmap", Versions: versions},
		{Name: "silent", Path: one + "/silent", Reason: "is no CNI plugin: it ends with exit status 1 when asked for its VERSION"},
	}
	if diff := cmp.Diff(want, set.All()); diff != "" {
		t.Errorf("plugins (-want +got):\n%s", diff)
	}
	wantDirs := []Dir{{missing, "does not exist"}, {one, ""}, {two, ""}, {noDir, "cannot be read: not a directory"}}
	if diff := cmp.Diff(wantDirs, set.Dirs()); diff != "" {
		t.Errorf("directories (-want +got):\n%s", diff)
	}
	if got, ok := set.Find("LICENSE"); !ok || got.Reason != "is not executable (mode 0644)" || got.Usable() {
		t.Errorf("Find(LICENSE) = %+v, %t", got, ok)
	}
	if got, ok := set.Find("folder"); ok {
		t.Errorf("Find(folder) = %+v", got)
	}
	if set.Busy() || runs(t, one, "crinet") != 0 || runs(t, two, "bridge") != 0 {
		t.Errorf("busy %t; the shim ran %d times, the shadowed bridge %d times", set.Busy(), runs(t, one, "crinet"), runs(t, two, "bridge"))
	}
	again := probe(t, p)
	if !again.Equal(set) {
		t.Errorf("the second probe differs:\n%s", cmp.Diff(set.All(), again.All()))
	}
	for _, name := range []string{"bridge", "hangs", "garbage", "loud", "fails"} {
		if n := runs(t, one, name); n > 1 {
			t.Errorf("%s was run %d times, and has not changed", name, n)
		}
	}
}

func TestProbeAgain(t *testing.T) {
	t.Parallel()
	answer04 := `{"cniVersion":"0.4.0","supportedVersions":["0.4.0"]}`
	tests := []struct {
		name   string
		change func(t *testing.T, path string)
		runs   int
		want   string // the version, or the start of the reason
	}{
		{"untouched", func(*testing.T, string) {}, 1, "1.1.0"},
		{"replaced by rename", func(t *testing.T, path string) { write(t, path, says(answer04)) }, 2, "0.4.0"},
		{"written in place", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			syscall.ForkLock.RLock()
			defer syscall.ForkLock.RUnlock()
			if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(b), "1.1.0", "1.0.9")), 0o755); err != nil {
				t.Fatal(err)
			}
		}, 2, "1.0.9"},
		{"old times kept", func(t *testing.T, path string) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			writeRaw(t, path, strings.ReplaceAll(string(b), "1.1.0", "1.0.9"), 0o755)
			if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}, 2, "1.0.9"},
		{"made executable no more", func(t *testing.T, path string) {
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}, 1, "is not executable"},
		{"removed", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, 1, "missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "bin")
			path := dir + "/plug"
			write(t, path, says(answer11))
			p := New([]string{dir}, Config{})
			first := probe(t, p)
			if pl, ok := first.Find("plug"); !ok || !pl.Supports("1.1.0") {
				t.Fatalf("before: %+v", pl)
			}
			tt.change(t, path)
			second := probe(t, p)
			got := "missing"
			if pl, ok := second.Find("plug"); ok {
				got = pl.Reason
				if pl.Usable() {
					got = pl.Versions[len(pl.Versions)-1]
				}
			}
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("after: %q, want %q", got, tt.want)
			}
			if n := runs(t, dir, "plug"); n != tt.runs {
				t.Errorf("run %d times, want %d", n, tt.runs)
			}
			if second.Equal(first) != (tt.name == "untouched") {
				t.Errorf("Equal = %t", second.Equal(first))
			}
		})
	}
}

// A file that is open for writing is busy, not bad, and asked again.
func TestProbeBusy(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", says(answer11))
	f, err := os.OpenFile(dir+"/plug", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := New([]string{dir}, Config{})
	set := probe(t, p)
	if pl, _ := set.Find("plug"); !pl.Busy || !set.Busy() || pl.Reason != "cannot be executed: text file busy" {
		t.Errorf("while it is written: %+v", pl)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// A child of another test may have inherited the descriptor for a moment.
	for deadline := time.Now().Add(5 * time.Second); ; {
		set = probe(t, p)
		if pl, _ := set.Find("plug"); pl.Usable() && !set.Busy() {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("after it was written: %+v", pl)
		}
	}
}

// Hanging files, even more than there are places, hold nobody up for longer
// than the limit.
func TestProbeHangersDoNotBlock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	for i := range 12 {
		write(t, fmt.Sprintf("%s/hang%02d", dir, i), "exec sleep 60")
	}
	write(t, dir+"/zzz", says(answer11))
	begun := time.Now()
	set := probe(t, New([]string{dir}, Config{Timeout: 3 * time.Second, Parallel: 2}))
	took := time.Since(begun)
	if pl, _ := set.Find("zzz"); !pl.Usable() {
		t.Errorf("zzz: %+v", pl)
	}
	if took > 12*time.Second { // one after another: 18 s
		t.Errorf("took %s", took)
	}
}

func TestProbeCancelled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", `[ -e "$0.slow" ] && exec sleep 60; `+says(answer11))
	writeRaw(t, dir+"/plug.slow", "", 0o644)
	p := New([]string{dir}, Config{Timeout: 30 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil && runs(t, dir, "plug") == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := p.Probe(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("error is %v", err)
	}
	if err := os.Remove(dir + "/plug.slow"); err != nil {
		t.Fatal(err)
	}
	if pl, _ := probe(t, p).Find("plug"); !pl.Usable() { // the cut-off answer was not kept
		t.Errorf("after a cancelled probe: %+v", pl)
	}
}

// fakeExec fails as a node that is short of something does.
type fakeExec struct {
	mu   sync.Mutex
	errs []error
}

func (f *fakeExec) Run(context.Context, string, []byte, []string) ([]byte, []byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.errs) == 0 {
		return []byte(answer11), nil, nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return nil, nil, err
}

func TestProbeShortages(t *testing.T) {
	t.Parallel()
	for _, errno := range []error{syscall.EAGAIN, syscall.ENOMEM, syscall.EMFILE} {
		dir := filepath.Join(t.TempDir(), "bin")
		writeRaw(t, dir+"/plug", "x", 0o755)
		p := New([]string{dir}, Config{})
		p.exec = &fakeExec{errs: []error{&pluginexec.Error{Kind: pluginexec.ErrStart, Cause: errno}}}
		if pl, _ := probe(t, p).Find("plug"); !pl.Busy {
			t.Errorf("%v: %+v", errno, pl)
		}
		if pl, _ := probe(t, p).Find("plug"); !pl.Usable() {
			t.Errorf("after %v: %+v", errno, pl)
		}
	}
}

func TestProbeManyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range maxFiles + 1 {
		if err := os.WriteFile(fmt.Sprintf("%s/f%04d", dir, i), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := New([]string{dir}, Config{})
	p.exec = &fakeExec{}
	set := probe(t, p)
	want := []Dir{{dir, "has more than 512 files; those from f0512 on are not probed"}}
	if diff := cmp.Diff(want, set.Dirs()); diff != "" || len(set.All()) != maxFiles {
		t.Errorf("%d plugins, directories (-want +got):\n%s", len(set.All()), diff)
	}
}

func TestPluginsImmutable(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", says(answer11))
	set := probe(t, New([]string{dir}, Config{}))
	pl, _ := set.Find("plug")
	pl.Versions[0] = "changed"
	set.All()[0].Versions[0] = "changed"
	set.Dirs()[0].Path = "changed"
	if pl, _ := set.Find("plug"); slices.Contains(pl.Versions, "changed") || set.Dirs()[0].Path != dir {
		t.Errorf("the set changed: %+v, %+v", pl, set.Dirs())
	}
	var none *Plugins
	if _, ok := none.Find("plug"); ok || none.Busy() || len(none.All())+len(none.Dirs()) != 0 || !none.Equal(nil) {
		t.Error("nil is not an empty set")
	}
}
