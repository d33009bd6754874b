package install

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// original is the path of a file in --cni-conf-dir, and copied of its copy.
func (r *rig) original(name string) string { return filepath.Join(r.config.NetworkConfDir, name) }
func (r *rig) copied(name string) string   { return filepath.Join(r.confDir, name) }

// tree is what a directory holds, by path below it, without the manifest's text.
func (r *rig) tree(dir string) map[string]string {
	r.t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		switch {
		case entry.IsDir():
			files[name+"/"] = ""
		case name == manifestName:
			files[name] = ""
		default:
			files[name] = r.read(path)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return files
}

func (r *rig) wantTree(dir string, want map[string]string) {
	r.t.Helper()
	if diff := cmp.Diff(want, r.tree(dir)); diff != "" {
		r.t.Errorf("%s (-want +got):\n%s", dir, diff)
	}
}

func (r *rig) wantManifest(want ...string) {
	r.t.Helper()
	got, err := readManifest(r.confDir)
	if err != nil || !slices.Equal(got, want) {
		r.t.Errorf("manifest: %v, %v; want %v", got, err, want)
	}
}

func newMirrorRig(t *testing.T) (*rig, *Mirror) {
	t.Helper()
	r := newRig(t)
	r.says(r.facts())
	return r, NewMirror(r.config)
}

func TestMirrorFollowsTheOriginals(t *testing.T) {
	r, m := newMirrorRig(t)
	for _, name := range []string{"10-bridge.conflist", "20-old.conf", "30-json.json", "10-bridge.conflist.bak", "kubeconfig", ".hidden/x.conf", ConfListName} {
		r.write(r.original(name), name)
	}
	r.write(r.original("inlined/10-bridge.conf"), "plugin") // loadOnlyInlinedPlugins
	r.write(r.original("inlined/deep/er.conf"), "")
	r.write(r.original("multus.d/multus.kubeconfig"), "")
	if err := os.Symlink("/nowhere", r.original("40-dangling.conf")); err != nil {
		t.Fatal(err)
	}
	m.Keep()
	want := map[string]string{
		manifestName: "", "10-bridge.conflist": "10-bridge.conflist", "20-old.conf": "20-old.conf", "30-json.json": "30-json.json",
		"inlined/": "", "inlined/10-bridge.conf": "plugin",
	}
	r.wantTree(r.confDir, want)
	r.wantManifest("10-bridge.conflist", "20-old.conf", "30-json.json", "inlined/10-bridge.conf")
	if r.wakes == 0 {
		t.Error("nobody asks the runtime whether it has loaded the copies")
	}
	for name := range maps.Keys(want) {
		info, err := os.Stat(r.copied(name))
		if err != nil || !info.IsDir() && info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600, it may hold secrets", name, info, err)
		}
	}

	r.write(r.original("10-bridge.conflist"), "changed")
	r.write(r.original("15-new.conf"), "new")
	r.remove(r.original("20-old.conf"))
	r.remove(r.original("inlined"))
	m.Keep()
	r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "changed", "15-new.conf": "new", "30-json.json": "30-json.json"})

	r.remove(r.copied("15-new.conf")) // a copy that somebody removed or changed
	r.write(r.copied("30-json.json"), "x")
	m.Keep()
	r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "changed", "15-new.conf": "new", "30-json.json": "30-json.json"})

	r.remove(r.config.NetworkConfDir)
	m.Keep()
	r.wantTree(r.confDir, map[string]string{})
	if r.logged("level=ERROR") != 0 {
		t.Errorf("an error was logged:\n%s", &r.logs)
	}
}

func TestUnchangedMirrorIsNotWritten(t *testing.T) {
	r, m := newMirrorRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	m.Keep()
	copied, manifest := markOf(r.copied("10-bridge.conflist")), markOf(r.copied(manifestName))
	lines := strings.Count(r.logs.String(), "\n")
	for range 5 {
		m.Keep()
	}
	if markOf(r.copied("10-bridge.conflist")) != copied || markOf(r.copied(manifestName)) != manifest {
		t.Error("an unchanged copy was written anew: the runtime reads its conf dir anew each time")
	}
	if got := strings.Count(r.logs.String(), "\n"); got != lines {
		t.Errorf("an unchanged mirror logs:\n%s", &r.logs)
	}
}

func TestMirrorLeavesTheConfDirsOfOthersAlone(t *testing.T) {
	r, m := newMirrorRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	r.write(r.copied("50-theirs.conflist"), "theirs")
	m.Keep()
	r.wantTree(r.confDir, map[string]string{"50-theirs.conflist": "theirs"})
	r.remove(r.copied("50-theirs.conflist"))
	r.write(r.copied("README"), "no configuration")
	m.Keep()
	r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "x", "README": "no configuration"})
}

func TestMirrorOfASharedConfDirCopiesNothing(t *testing.T) {
	for name, spelling := range map[string]string{"same": "", "trailing slash": "/"} {
		r := newRig(t)
		r.confDir = r.config.NetworkConfDir + spelling
		r.says(r.facts())
		r.write(r.original("10-bridge.conflist"), "x")
		r.write(r.original(ConfListName), "crinet's")
		NewMirror(r.config).Keep()
		r.wantTree(r.config.NetworkConfDir, map[string]string{"10-bridge.conflist": "x"})
		if r.logged("level=ERROR") != 0 {
			t.Errorf("%s: an error was logged:\n%s", name, &r.logs)
		}
	}
}

func TestMirrorRemovesWhatTheKeeperInstalledAndBack(t *testing.T) {
	r := newRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	r.standing()
	m := NewMirror(r.config)
	m.Keep()
	r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "x"})
	if exists(r.shim()) {
		t.Error("the shim is left")
	}
	k := r.standing()
	if got := slices.Sorted(maps.Keys(r.tree(r.confDir))); !slices.Equal(got, []string{ConfListName}) {
		t.Errorf("the conf dir holds %v, want crinet's configuration alone", got)
	}
	if err := k.Ready(); err != nil || r.logged("level=WARN") != 0 {
		t.Errorf("Ready = %v, log:\n%s", err, &r.logs)
	}
}

// At no moment of a change between crinetd's and the runtime's own networking
// is the conf dir without a configuration: the runtime would fail every pod.
func TestConfDirIsNeverEmptyInAChange(t *testing.T) {
	r := newRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	r.standing()
	events := watchDir(t, r.confDir)
	NewMirror(r.config).Keep()
	NewKeeper(r.config).Keep()
	present, seen := map[string]bool{ConfListName: true}, events()
	for _, event := range seen {
		if !isConfiguration(event.name) && event.name != ConfListName {
			continue
		}
		if present[event.name] = event.there; !slices.Contains(slices.Collect(maps.Values(present)), true) {
			t.Errorf("the conf dir was without a configuration: %v", seen)
		}
	}
	if len(present) != 2 || !present[ConfListName] || present["10-bridge.conflist"] {
		t.Errorf("the test did not see the change: %v", seen)
	}
}

// dirEvent says that a file appeared in a directory or vanished from it.
type dirEvent struct {
	name  string
	there bool
}

// watchDir returns a function that returns what happened since in a directory.
func watchDir(t *testing.T, dir string) func() []dirEvent {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_CREATE|syscall.IN_MOVED_TO|syscall.IN_MOVED_FROM|syscall.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	return func() (events []dirEvent) {
		buf := make([]byte, 1<<16)
		n, err := syscall.Read(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		for buf = buf[:n]; len(buf) > 0; {
			mask, size := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint32(buf[12:])
			name := strings.TrimRight(string(buf[syscall.SizeofInotifyEvent:syscall.SizeofInotifyEvent+size]), "\x00")
			events = append(events, dirEvent{name, mask&(syscall.IN_CREATE|syscall.IN_MOVED_TO) != 0})
			buf = buf[syscall.SizeofInotifyEvent+size:]
		}
		return events
	}
}

// A crash between the manifest and the copies, or between a removal and the
// manifest, leaves nothing that is taken for somebody else's.
func TestMirrorAfterACrash(t *testing.T) {
	for name, crash := range map[string]func(*rig){
		"manifest only":     func(*rig) {},
		"one copy written":  func(r *rig) { r.write(r.copied("10-bridge.conflist"), "old") },
		"stale not removed": func(r *rig) { r.write(r.copied("20-gone.conf"), "gone") },
	} {
		t.Run(name, func(t *testing.T) {
			r, m := newMirrorRig(t)
			r.write(r.original("10-bridge.conflist"), "x")
			r.write(r.original("inlined/a.conf"), "y")
			r.write(r.copied(manifestName), `["10-bridge.conflist","20-gone.conf","inlined/a.conf"]`)
			crash(r)
			m.Keep()
			r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "x", "inlined/": "", "inlined/a.conf": "y"})
			r.wantManifest("10-bridge.conflist", "inlined/a.conf")
		})
	}
}

// A copy is named in the manifest before it is there: a write that fails in
// between can be finished.
func TestManifestComesBeforeTheCopies(t *testing.T) {
	r, m := newMirrorRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	r.write(r.original("inlined/a.conf"), "y")
	r.write(r.copied("inlined"), "a file where the folder belongs")
	for range 3 {
		m.Keep()
	}
	r.wantManifest("10-bridge.conflist", "inlined/a.conf")
	if r.logged("level=ERROR", r.copied("inlined")) != 1 || r.logged("holds copies") != 0 {
		t.Errorf("want one error that names the file:\n%s", &r.logs)
	}
	r.remove(r.copied("inlined"))
	m.Keep()
	r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "x", "inlined/": "", "inlined/a.conf": "y"})
}

// A manifest that leads out of the conf dir, or that is none, removes nothing.
func TestBadManifestIsRefused(t *testing.T) {
	outside, err := json.Marshal([]string{"../bin/precious", "/etc/passwd"})
	if err != nil {
		t.Fatal(err)
	}
	for name, manifest := range map[string]string{"outside": string(outside), "half": `["10-br`} {
		t.Run(name, func(t *testing.T) {
			r, m := newMirrorRig(t)
			r.write(filepath.Join(r.binDir, "precious"), "x")
			r.write(r.copied(manifestName), manifest)
			for range 3 {
				m.Keep()
			}
			if r.logged("level=ERROR", manifestName, "remove it") != 1 {
				t.Errorf("want one error that says what to do:\n%s", &r.logs)
			}
			k := NewKeeper(r.config)
			k.Keep()
			wantError(t, k.Ready(), manifestName, "remove it")
			if !exists(filepath.Join(r.binDir, "precious")) {
				t.Error("a file outside of the conf dir was removed")
			}
			if !exists(r.conf()) {
				t.Error("crinet is not installed because of a list of copies")
			}
			r.remove(r.copied(manifestName))
			k.Keep()
			r.says(r.facts())
			if err := k.Ready(); err != nil {
				t.Errorf("Ready = %v after the manifest was removed", err)
			}
		})
	}
}

// What cannot be read is not gone: the copies stay.
func TestUnreadableOriginalsKeepTheCopies(t *testing.T) {
	r, m := newMirrorRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	m.Keep()
	r.remove(r.config.NetworkConfDir)
	r.write(r.config.NetworkConfDir, "not a directory")
	m.Keep()
	r.wantTree(r.confDir, map[string]string{manifestName: "", "10-bridge.conflist": "x"})
	if r.logged("level=ERROR", r.config.NetworkConfDir) != 1 {
		t.Errorf("want one error that names the directory:\n%s", &r.logs)
	}
}

func TestMirrorServesHandlersWithConfDirsOfTheirOwn(t *testing.T) {
	r := newRig(t)
	kata, gvisor := filepath.Join(r.dir, "kata.d"), filepath.Join(r.dir, "gvisor.d")
	r.config.Handlers = []string{"kata"}
	facts := r.facts()
	facts.Handlers = map[string]string{"kata": kata, "gvisor": gvisor}
	r.says(facts)
	r.write(r.original("10-bridge.conflist"), "x")
	NewKeeper(r.config).Keep()
	NewMirror(r.config).Keep()
	for _, dir := range []string{r.confDir, kata} {
		r.wantTree(dir, map[string]string{manifestName: "", "10-bridge.conflist": "x"})
	}
	if exists(gvisor) {
		t.Error("a handler that crinet does not serve got copies")
	}
}

func TestMirrorWaitsForTheRuntimeAndFollows(t *testing.T) {
	r := newRig(t)
	r.write(r.original("10-bridge.conflist"), "x")
	m := NewMirror(r.config)
	m.Keep()
	if exists(r.confDir) {
		t.Fatal("something was done before the runtime has answered")
	}
	r.says(r.facts())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); m.Run(ctx) }()
	waitFor(t, "the copy", func() bool { return exists(r.copied("10-bridge.conflist")) })
	r.write(r.original("10-bridge.conflist.tmp"), "y")
	if err := os.Rename(r.original("10-bridge.conflist.tmp"), r.original("10-bridge.conflist")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the change", func() bool { return r.read(r.copied("10-bridge.conflist")) == "y" })
	cancel()
	<-done
}
