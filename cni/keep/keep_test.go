package keep

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// rig is a store and a bin dir.
type rig struct {
	*Store
	t   *testing.T
	bin string
	log bytes.Buffer
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, bin: t.TempDir()}
	r.Store = Open(filepath.Join(t.TempDir(), "plugins"), slog.New(slog.NewTextHandler(&r.log, nil)))
	return r
}

// install puts a plugin into the bin dir, as a package manager does.
func (r *rig) install(typ, text string) string {
	r.t.Helper()
	path := filepath.Join(r.bin, typ)
	if err := os.WriteFile(path+".new", []byte(text), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// found is what a plugin's search in the folders of an attachment finds.
func (r *rig) found(kept map[string]string, typ string) string {
	r.t.Helper()
	for _, dir := range r.Dirs(kept) {
		if text, err := os.ReadFile(filepath.Join(dir, typ)); err == nil {
			return string(text)
		}
	}
	return ""
}

func (r *rig) entries() int {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	return len(entries)
}

// Each attachment finds the binaries that it was made with, whatever became of them.
func TestCopiesOutliveTheBinaries(t *testing.T) {
	r := newRig(t)
	paths := []string{r.install("bridge", "bridge 1"), r.install("host-local", "ipam 1")}
	first := r.Keep(paths)
	again := r.Keep(paths)
	if diff := cmp.Diff(first, again); diff != "" || len(first) != 2 || r.entries() != 2 {
		t.Fatalf("kept %v, then %v; %d folders", first, again, r.entries())
	}
	// An upgrade replaces one, and writes into the other one's file.
	r.install("bridge", "bridge 2")
	if err := os.WriteFile(paths[1], []byte("ipam 2"), 0o755); err != nil {
		t.Fatal(err)
	}
	second := r.Keep(paths)
	if err := os.RemoveAll(r.bin); err != nil {
		t.Fatal(err)
	}
	for typ, want := range map[string][2]string{"bridge": {"bridge 1", "bridge 2"}, "host-local": {"ipam 1", "ipam 2"}} {
		if got := [2]string{r.found(first, typ), r.found(second, typ)}; got != want {
			t.Errorf("%s: found %q, want %q", typ, got, want)
		}
	}
	for _, dir := range r.Dirs(first) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", dir, info, err)
		}
	}
	if r.Keep(paths)["bridge"] != "" || !strings.Contains(r.log.String(), "no such file") {
		t.Errorf("a binary that is gone was kept; log: %s", &r.log)
	}
	if n := strings.Count(r.log.String(), "\n"); n != 2 {
		t.Errorf("%d lines in the log, want one for each binary", n)
	}
	r.Keep(paths)
	if n := strings.Count(r.log.String(), "\n"); n != 2 {
		t.Errorf("a failure is logged again and again: %s", &r.log)
	}
}

// A copy that somebody removed is made again.
func TestLostCopyIsMadeAgain(t *testing.T) {
	r := newRig(t)
	paths := []string{r.install("ptp", "ptp")}
	kept := r.Keep(paths)
	if err := os.RemoveAll(r.dir); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kept, r.Keep(paths)); diff != "" || r.found(kept, "ptp") != "ptp" {
		t.Errorf("kept again (-want +got):\n%s", diff)
	}
}

func TestPrune(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	r.now = func() time.Time { return now }
	old := r.Keep([]string{r.install("bridge", "1")})
	used := r.Keep([]string{r.install("bridge", "2")})
	now = now.Add(graceOfUse)
	planned := r.Keep([]string{r.install("bridge", "3")})
	if err := os.WriteFile(filepath.Join(r.dir, unfinished+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(r.dir, "somebody-elses"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.prune(map[string]bool{used["bridge"]: true}); err != nil {
		t.Fatal(err)
	}
	if got := [3]string{r.found(old, "bridge"), r.found(used, "bridge"), r.found(planned, "bridge")}; got != [3]string{"", "2", "3"} {
		t.Errorf("after a prune there are %q", got)
	}
	if n := r.entries(); n != 3 {
		t.Errorf("%d entries are left, want the two copies and what is not ours", n)
	}
	if err := Open(filepath.Join(t.TempDir(), "none"), r.Store.log).prune(nil); err != nil {
		t.Errorf("a store that is not there yet: %v", err)
	}
}

// What may be no copy's name is never part of a path.
func TestDirsTakesHashesOnly(t *testing.T) {
	r := newRig(t)
	if dirs := r.Dirs(map[string]string{"bridge": "../../etc", "ptp": "", "x": strings.Repeat("A", hashLength)}); len(dirs) != 0 {
		t.Errorf("Dirs = %q", dirs)
	}
}

func TestLimits(t *testing.T) {
	r := newRig(t)
	fifo := filepath.Join(r.bin, "folder")
	if err := os.Mkdir(fifo, 0o700); err != nil {
		t.Fatal(err)
	}
	if kept := r.Keep([]string{fifo}); len(kept) != 0 || !strings.Contains(r.log.String(), "no regular file") {
		t.Errorf("a folder is kept as %v: %s", kept, &r.log)
	}
	big := r.install("big", "")
	if err := os.Truncate(big, maxBinary+1); err != nil { // sparse
		t.Fatal(err)
	}
	if kept := r.Keep([]string{big}); len(kept) != 0 || !strings.Contains(r.log.String(), "the limit") {
		t.Errorf("a huge file is kept as %v: %s", kept, &r.log)
	}
	for i := range maxKept {
		if err := os.MkdirAll(filepath.Join(r.dir, string(rune('a'+i%26))+strings.Repeat("0", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if kept := r.Keep([]string{r.install("more", "x")}); len(kept) != 0 || !strings.Contains(r.log.String(), "copies, which is the limit") {
		t.Errorf("more than the limit are kept: %v: %s", kept, &r.log)
	}
}
