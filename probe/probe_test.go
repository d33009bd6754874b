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

// newProber returns a prober that stops with the test.
func newProber(t *testing.T, cfg Config, dirs ...string) *Prober {
	p := New(dirs, cfg)
	t.Cleanup(p.Stop)
	return p
}

// probe asks for types and waits for all first answers.
func probe(t *testing.T, p *Prober, types ...string) *Plugins {
	t.Helper()
	set, err := p.Probe(t.Context(), types, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// await probes after each answer until plugin name is as it should be.
func await(t *testing.T, p *Prober, name string, ok func(Plugin) bool) Plugin {
	t.Helper()
	for deadline := time.After(30 * time.Second); ; {
		pl, _ := probe(t, p, name).Find(name)
		if ok(pl) {
			return pl
		}
		select {
		case <-p.Answered():
		case <-deadline:
			t.Fatalf("plugin %s stays %+v", name, pl)
		}
	}
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
	write(t, one+"/objects", says(`{"code":4,"msg":"no network"}`)+"; exit 1")
	write(t, one+"/ancient", says(`{"code":100,"msg":"unknown CNI_COMMAND: VERSION"}`)+"; exit 1")
	write(t, one+"/kubelet", "exit 0")
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
	p := newProber(t, Config{Timeout: 4 * time.Second}, missing, one, two, noDir)
	types := []string{"ancient", "bridge", "crash", "crinet", "dangling", "elf", "empty", "fails", "folder", "garbage", "hangs", "LICENSE",
		"link", "loud", "none", "nowhere", "objects", "odd", "old", "portmap", "silent"}
	set := probe(t, p, types...)
	want := []Plugin{
		{Name: "ancient", Path: one + "/ancient", Versions: []string{"0.1.0"}},
		{Name: "bridge", Path: one + "/bridge", Versions: versions, Shadowed: []string{two + "/bridge"}},
		{Name: "crash", Path: one + "/crash", Reason: "ends with signal 11 (segmentation fault) when asked for its VERSION", Busy: true},
		{Name: "crinet", Path: one + "/crinet", Reason: "is crinet's own shim, which is no network's plugin"},
		{Name: "elf", Path: one + "/elf", Reason: "cannot be executed: exec format error", Busy: true},
		{Name: "empty", Path: one + "/empty", Reason: "is no CNI plugin: its answer to VERSION is empty"},
		{Name: "fails", Path: one + "/fails", Reason: `is no CNI plugin: it ends with exit status 1 when asked for its VERSION: "no such verb"`},
		{Name: "garbage", Path: one + "/garbage", Reason: `is no CNI plugin: its answer to VERSION cannot be read: decoding version info: invalid character 'h' looking for beginning of value: "hello\n"`},
		{Name: "hangs", Path: one + "/hangs", Reason: "hangs: no answer to VERSION within 4s; it is asked again", Busy: true},
		{Name: "kubelet", Path: one + "/kubelet", Reason: "not asked: no configuration names it"},
		{Name: "link", Path: one + "/link", Versions: versions},
		{Name: "loud", Path: one + "/loud", Reason: "is no CNI plugin: it answers VERSION with more than 65536 bytes"},
		{Name: "none", Path: one + "/none", Reason: `is no CNI plugin: its answer to VERSION names no version: "{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"x\"]}\n"`},
		{Name: "objects", Path: one + "/objects", Reason: `is no CNI plugin: it ends with exit status 1 when asked for its VERSION: "no network"`},
		{Name: "odd", Path: one + "/odd", Versions: []string{"1.0.0"}},
		{Name: "old", Path: one + "/old", Versions: []string{"0.1.0", "0.2.0"}},
		{Name: "portmap", Path: two + "/portmap", Versions: versions},
		{Name: "silent", Path: one + "/silent", Reason: "is no CNI plugin: it ends with exit status 1 when asked for its VERSION"},
	}
	for i := range want {
		want[i].Asked = want[i].Name != "kubelet" && want[i].Name != "crinet"
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
	if runs(t, one, "crinet") != 0 || runs(t, two, "bridge") != 0 || runs(t, one, "kubelet") != 0 {
		t.Errorf("the shim ran %d times, the shadowed bridge %d times, what nothing names %d times",
			runs(t, one, "crinet"), runs(t, two, "bridge"), runs(t, one, "kubelet"))
	}
	again := probe(t, p, types...)
	if !again.Equal(set) {
		t.Errorf("the second probe differs:\n%s", cmp.Diff(set.All(), again.All()))
	}
	for name, want := range map[string]int{
		"bridge": 2, // by its own name and by link: a program with many names may answer for each
		"empty":  1, "garbage": 1, "loud": 1, "fails": 1, "ancient": 1,
	} {
		if n := runs(t, one, name); n != want {
			t.Errorf("%s was run %d times, want %d: it has not changed", name, n, want)
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
			p := newProber(t, Config{}, dir)
			first := probe(t, p, "plug")
			if pl, ok := first.Find("plug"); !ok || !pl.Supports("1.1.0") {
				t.Fatalf("before: %+v", pl)
			}
			tt.change(t, path)
			second := probe(t, p, "plug")
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

// A file that is open for writing is busy, not bad, and asked again without a
// change of the file.
func TestProbeBusy(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", says(answer11))
	f, err := os.OpenFile(dir+"/plug", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := newProber(t, Config{}, dir)
	if pl, _ := probe(t, p, "plug").Find("plug"); !pl.Busy || pl.Reason != "cannot be executed: text file busy" {
		t.Errorf("while it is written: %+v", pl)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, p, "plug", func(pl Plugin) bool { return pl.Usable() && !pl.Busy })
}

// A plugin that did not answer in time is asked again without a change of the
// file: one slow moment of the node is no verdict.
func TestProbeAsksAgainAfterTimeout(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", `[ -e "$0.slow" ] && exec sleep 60; `+says(answer11))
	writeRaw(t, dir+"/plug.slow", "", 0o644)
	p := newProber(t, Config{Timeout: 300 * time.Millisecond}, dir)
	if pl, _ := probe(t, p, "plug").Find("plug"); pl.Usable() || !pl.Busy || !strings.HasPrefix(pl.Reason, "hangs") {
		t.Fatalf("while it hangs: %+v", pl)
	}
	if err := os.Remove(dir + "/plug.slow"); err != nil {
		t.Fatal(err)
	}
	// Under load an answer may take longer than the limit: then once more.
	pl := await(t, p, "plug", func(pl Plugin) bool { return !pl.Busy })
	if !pl.Usable() || pl.Doubt != "" {
		t.Errorf("after it answered: %+v", pl)
	}
}

// The last good answer counts while the same plugin gives transient answers,
// also those of a changed binary, and a final one ends that.
func TestProbeKeepsLastGoodAnswer(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", says(answer11))
	p := newProber(t, Config{Timeout: 10 * time.Second}, dir)
	probe(t, p, "plug")
	for _, step := range []struct{ name, body, doubt, reason string }{
		{"killed by a signal", "kill -KILL $$", "its last good answer is used: it ends with signal 9 (killed)", ""},
		{"half of a binary", "", "its last good answer is used: it cannot be executed: exec format error", ""},
		{"good again", says(answer11), "", ""},
		{"no plugin", "echo hello", "", "is no CNI plugin"},
		{"killed after that", "kill -KILL $$", "", "ends with signal 9 (killed)"},
	} {
		if step.body == "" {
			writeRaw(t, dir+"/plug", "\x7fELF and no more", 0o755)
		} else {
			write(t, dir+"/plug", step.body)
		}
		pl, _ := probe(t, p, "plug").Find("plug")
		if !strings.HasPrefix(pl.Doubt, step.doubt) || !strings.HasPrefix(pl.Reason, step.reason) ||
			(pl.Doubt == "") != (step.doubt == "") || pl.Usable() != (step.reason == "") || pl.Supports("1.1.0") != pl.Usable() {
			t.Errorf("%s: %+v", step.name, pl)
		}
	}
}

// Executables that no configuration names are listed and never run.
func TestProbeRunsOnlyNamedPlugins(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/bridge", says(answer11))
	write(t, dir+"/kubelet", says(answer11))
	p := newProber(t, Config{}, dir)
	for _, types := range [][]string{{"bridge"}, {"bridge", "kubelet"}, {"bridge"}} {
		pl, ok := probe(t, p, types...).Find("kubelet")
		if named := len(types) == 2; !ok || pl.Asked != named || pl.Usable() != named ||
			(!named && pl.Reason != "not asked: no configuration names it") || (!named && runs(t, dir, "kubelet") > 1) {
			t.Errorf("asked for %v: %+v, run %d times", types, pl, runs(t, dir, "kubelet"))
		}
		if !slices.Contains(types, "kubelet") && len(types) == 1 && runs(t, dir, "bridge") != 1 {
			t.Errorf("bridge was run %d times", runs(t, dir, "bridge"))
		}
	}
	if n := runs(t, dir, "kubelet"); n != 1 {
		t.Errorf("kubelet was run %d times, want once, while it was named", n)
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
	types := []string{"zzz"}
	for i := range 12 {
		types = append(types, fmt.Sprintf("hang%02d", i))
	}
	begun := time.Now()
	p := newProber(t, Config{Timeout: 3 * time.Second, Parallel: 2}, dir)
	set := probe(t, p, types...)
	took := time.Since(begun)
	if pl, _ := set.Find("zzz"); !pl.Usable() {
		t.Errorf("zzz: %+v", pl)
	}
	if took > 12*time.Second { // one after another: 18 s
		t.Errorf("took %s", took)
	}
}

// A probe returns after its patience, with what is known; the answer is told
// when it comes.
func TestProbePatience(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", `while [ -e "$0.slow" ]; do sleep 0.01; done; `+says(answer11))
	writeRaw(t, dir+"/plug.slow", "", 0o644)
	p := newProber(t, Config{Timeout: time.Minute}, dir)
	set, err := p.Probe(t.Context(), []string{"plug"}, 10*time.Millisecond)
	if pl, _ := set.Find("plug"); err != nil || !pl.Busy || pl.Reason != "has not answered VERSION yet" {
		t.Fatalf("%+v, %v", pl, err)
	}
	begun := time.Now()
	probe(t, p, "plug") // nothing is new: it does not wait for its minute
	if took := time.Since(begun); took > 30*time.Second {
		t.Errorf("a probe without a new file took %v", took)
	}
	if err := os.Remove(dir + "/plug.slow"); err != nil {
		t.Fatal(err)
	}
	<-p.Answered()
	if pl, _ := probe(t, p, "plug").Find("plug"); !pl.Usable() || pl.Busy || runs(t, dir, "plug") != 1 {
		t.Errorf("after its answer: %+v", pl)
	}
}

// What ends with the context or with Stop is no answer.
func TestProbeCancelled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", `[ -e "$0.slow" ] && exec sleep 60; `+says(answer11))
	writeRaw(t, dir+"/plug.slow", "", 0o644)
	p := newProber(t, Config{Timeout: 30 * time.Second}, dir)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for ctx.Err() == nil && runs(t, dir, "plug") == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := p.Probe(ctx, []string{"plug"}, time.Minute); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("error is %v", err)
	}
	p.Stop()
	if err := os.Remove(dir + "/plug.slow"); err != nil {
		t.Fatal(err)
	}
	if pl, _ := probe(t, p, "plug").Find("plug"); !pl.Usable() { // the cut-off answer was not kept
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
		p := newProber(t, Config{}, dir)
		p.exec = &fakeExec{errs: []error{&pluginexec.Error{Kind: pluginexec.ErrStart, Cause: errno}}}
		if pl, _ := probe(t, p, "plug").Find("plug"); !pl.Busy {
			t.Errorf("%v: %+v", errno, pl)
		}
		await(t, p, "plug", Plugin.Usable)
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
	p := newProber(t, Config{}, dir)
	p.exec = &fakeExec{}
	last := fmt.Sprintf("f%04d", maxFiles)
	set := probe(t, p, last)
	want := []Dir{{dir, "has more than 512 files; from f0512 on only those that a configuration names are listed"}}
	if diff := cmp.Diff(want, set.Dirs()); diff != "" || len(set.All()) != maxFiles+1 {
		t.Errorf("%d plugins, directories (-want +got):\n%s", len(set.All()), diff)
	}
	if pl, _ := set.Find(last); !pl.Usable() { // the limit is none for what is named
		t.Errorf("%+v", pl)
	}
}

func TestPluginsImmutable(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "bin")
	write(t, dir+"/plug", says(answer11))
	set := probe(t, newProber(t, Config{}, dir), "plug")
	pl, _ := set.Find("plug")
	pl.Versions[0] = "changed"
	set.All()[0].Versions[0] = "changed"
	set.Dirs()[0].Path = "changed"
	if pl, _ := set.Find("plug"); slices.Contains(pl.Versions, "changed") || set.Dirs()[0].Path != dir {
		t.Errorf("the set changed: %+v, %+v", pl, set.Dirs())
	}
	var none *Plugins
	if _, ok := none.Find("plug"); ok || len(none.All())+len(none.Dirs()) != 0 || !none.Equal(nil) {
		t.Error("nil is not an empty set")
	}
}
