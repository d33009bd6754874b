package install

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// Row A2: the runtime says where it looks; flags win.
func TestKeeperInstallsWhereTheRuntimeLooks(t *testing.T) {
	for name, c := range map[string]struct {
		conf, bin bool // given by flag
		known     bool // the runtime has answered
		nothing   bool
	}{
		"asked":                {known: true},
		"conf dir by flag":     {conf: true, known: true},
		"bin dir by flag":      {bin: true, known: true},
		"both by flag":         {conf: true, bin: true, known: true},
		"both, no answer yet":  {conf: true, bin: true},
		"one, no answer yet":   {conf: true, nothing: true},
		"other, no answer yet": {bin: true, nothing: true},
		"no answer yet":        {nothing: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			conf, shim := r.conf(), r.shim()
			if c.conf {
				r.config.ConfDir = filepath.Join(r.dir, "flag.d")
				conf = filepath.Join(r.config.ConfDir, ConfListName)
			}
			if c.bin {
				r.config.BinDir = filepath.Join(r.dir, "flagbin")
				shim = filepath.Join(r.config.BinDir, PluginName)
			}
			version := oldVersion
			if c.known {
				version = newVersion
				facts := r.facts()
				facts.BinDirs = append(facts.BinDirs, filepath.Join(r.dir, "second"))
				r.says(facts)
			}
			before := names(t, r.dir)
			NewKeeper(r.config).Keep()
			if c.nothing {
				if after := names(t, r.dir); !slices.Equal(before, after) {
					t.Fatalf("the node has %v, want nothing but %v", after, before)
				}
				return
			}
			list, err := libcni.NetworkConfFromFile(conf)
			if err != nil {
				t.Fatal(err)
			}
			if list.CNIVersion != version || r.read(shim) != shimText {
				t.Errorf("version %s, want %s; or another shim", list.CNIVersion, version)
			}
			if got := len(names(t, r.dir)); got != len(before)+2 {
				t.Errorf("the node has %v, want two directories more", names(t, r.dir))
			}
		})
	}
}

func TestRuntimeThatDoesNotTellGetsTheDefaults(t *testing.T) {
	c := Config{}
	dirs, binDir, unserved := c.where(&upstream.Facts{Name: "cri-o"})
	if !slices.Equal(dirs, []string{DefaultConfDir}) || binDir != DefaultBinDir || len(unserved) != 0 {
		t.Errorf("where = %v, %s, %v; want the defaults", dirs, binDir, unserved)
	}
}

func TestKeptFilesAreNeverSeenHalf(t *testing.T) {
	r := newRig(t)
	k := r.standing()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := libcni.NetworkConfFromFile(r.conf()); err != nil {
				done <- err
				return
			}
			if shim, err := os.ReadFile(r.shim()); err != nil || len(shim) < len(shimText) {
				done <- errors.Join(err, errors.New("half a shim"))
				return
			}
		}
	}()
	for n := range 40 {
		facts := r.facts()
		facts.Version = []string{"v1.7.27", "v2.4.2"}[n%2]
		r.says(facts)
		r.write(r.config.Shim+".new", shimText+strings.Repeat("#", n))
		if err := os.Rename(r.config.Shim+".new", r.config.Shim); err != nil {
			t.Fatal(err)
		}
		k.Keep()
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Row A4: who takes crinet's files away is named, and the node is not ready
// before the runtime has loaded them again.
func TestTakenFilesComeBack(t *testing.T) {
	const cilium, unknown = "Cilium", "unknown"
	for name, c := range map[string]struct {
		take func(*rig)
		who  string
	}{
		"removed": {func(r *rig) { r.remove(r.conf()) }, unknown},
		"renamed": {func(r *rig) {
			if err := os.Rename(r.conf(), r.conf()+".cilium_bak"); err != nil {
				r.t.Fatal(err)
			}
		}, cilium},
		"changed": {func(r *rig) { r.write(r.conf(), "{}") }, unknown},
		"mode changed": {func(r *rig) {
			if err := os.Chmod(r.conf(), 0o600); err != nil {
				r.t.Fatal(err)
			}
		}, unknown},
		"shim removed":     {func(r *rig) { r.remove(r.shim()) }, unknown},
		"shim changed":     {func(r *rig) { r.remove(r.shim()); r.write(r.shim(), "#!/bin/false\n") }, unknown},
		"conf dir removed": {func(r *rig) { r.remove(r.confDir) }, unknown},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			k := r.standing()
			want := r.read(r.conf())
			c.take(r)
			wakes := r.wakes
			k.Keep()
			if r.read(r.conf()) != want || r.read(r.shim()) != shimText {
				t.Fatal("the files are not what they were")
			}
			if r.logged("level=WARN", c.who) != 1 || r.wakes == wakes {
				t.Errorf("woken %d times, log:\n%s", r.wakes-wakes, &r.logs)
			}
			wantError(t, k.Ready(), "the runtime's side", r.conf(), c.who)
			facts := r.facts()
			facts.Loaded = []string{"other"}
			r.says(facts)
			wantError(t, k.Ready(), "has not loaded", "other")
			r.says(r.facts())
			wantError(t, k.Ready(), "see it stay", r.conf(), c.who)
			k.now = func() time.Time { return time.Now().Add(stay) }
			if err := k.Ready(); err != nil {
				t.Errorf("Ready = %v after the runtime has loaded the configuration", err)
			}

			c.take(r) // again, before and after the files were seen to stay
			k.Keep()
			k.Keep()
			c.take(r)
			k.Keep()
			wantError(t, k.Ready(), c.who)
			if r.logged("level=WARN") != 1 {
				t.Errorf("one warning is enough in %s:\n%s", warnInterval, &r.logs)
			}
		})
	}
}

// A rival that is always faster than crinetd's next look is seen as well.
func TestRivalThatTakesFilesAtOnce(t *testing.T) {
	r := newRig(t)
	r.says(r.facts())
	k := NewKeeper(r.config)
	for range 5 {
		k.Keep()
		if err := os.Rename(r.conf(), r.conf()+".cilium_bak"); err != nil {
			t.Fatalf("crinetd did not put its configuration back: %v", err)
		}
	}
	if r.logged("level=WARN", "Cilium") != 1 {
		t.Errorf("want one warning:\n%s", &r.logs)
	}
}

func TestUpgradeIsNoTheft(t *testing.T) {
	r := newRig(t)
	k := r.standing()
	facts := r.facts()
	facts.Version = "v1.7.27"
	r.says(facts)
	k.Keep()
	if list, err := libcni.NetworkConfFromFile(r.conf()); err != nil || list.CNIVersion != oldVersion {
		t.Errorf("configuration %v, %v; want version %s for containerd 1.7", list, err, oldVersion)
	}
	r.write(r.config.Shim, "another shim")
	k.Keep()
	if r.read(r.shim()) != "another shim" {
		t.Error("the new shim is not installed")
	}
	if r.logged("level=WARN") != 0 {
		t.Errorf("crinetd's own change counts as somebody else's:\n%s", &r.logs)
	}
}

// A configuration of an earlier run stays as it is while the runtime is down.
func TestVersionOfAnEarlierRunStays(t *testing.T) {
	r := newRig(t)
	r.standing()
	before := markOf(r.conf())
	r.config.ConfDir, r.config.BinDir = r.confDir, r.binDir
	r.answer = upstream.Answer{Err: errors.New("down")}
	k := NewKeeper(r.config)
	k.Keep()
	if markOf(r.conf()) != before {
		t.Error("the configuration was written anew")
	}
	if err := k.Ready(); err != nil {
		t.Errorf("Ready = %v while the runtime is down", err)
	}
}

// Row B17: an unchanged node costs no reads, only stat.
func TestUnchangedFilesAreNotRead(t *testing.T) {
	r := newRig(t)
	k := r.standing()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	for _, path := range []string{r.conf(), r.shim(), r.config.Shim} {
		if _, err := syscall.InotifyAddWatch(fd, path, syscall.IN_OPEN); err != nil {
			t.Fatal(err)
		}
	}
	opened := func() bool {
		_, err := syscall.Read(fd, make([]byte, 4096))
		return !errors.Is(err, syscall.EAGAIN)
	}
	for range 100 {
		k.Keep()
	}
	if opened() {
		t.Error("Keep opened a file that nobody had changed")
	}
	r.read(r.shim())
	if !opened() {
		t.Error("the test does not see when a file is opened")
	}
}

func BenchmarkKeepUnchanged(b *testing.B) {
	r := newRig(b)
	r.write(r.config.Shim, string(make([]byte, 3<<20)))
	k := r.standing()
	b.ReportAllocs()
	for b.Loop() {
		k.Keep()
	}
}

// Row B2: crinetd says that it cannot write, and goes on trying.
func TestBinDirBelowAFile(t *testing.T) {
	r := newRig(t)
	r.write(r.binDir, "not a directory")
	r.says(r.facts())
	k := NewKeeper(r.config)
	checkTrouble(t, r, k, "not a directory")
	r.remove(r.binDir)
	checkMended(t, r, k)
}

// Row B2 with a real file system: in a mount namespace of the test's own.
func TestBinDirThatIsFullOrReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	for name, c := range map[string]struct {
		mode uintptr
		size string
		want string
	}{
		"read-only": {syscall.MS_RDONLY, "", "read-only file system"},
		"full":      {0, "size=8k", "no space left on device"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(filepath.Join(r.binDir, "other"), "")
			r.says(r.facts())
			k := NewKeeper(r.config)
			inMountNamespace(t, func() {
				if err := syscall.Mount("tmpfs", r.binDir, "tmpfs", c.mode, c.size); err != nil {
					t.Error(err)
					return
				}
				checkTrouble(t, r, k, c.want)
				if err := syscall.Mount("tmpfs", r.binDir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
					t.Error(err)
					return
				}
				if left := names(t, r.binDir); len(left) != 0 {
					t.Errorf("half a shim is left: %v", left)
				}
				checkMended(t, r, k)
			})
		})
	}
}

// inMountNamespace calls f on a thread that ends with it.
func inMountNamespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread's mounts are its own
		if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func checkTrouble(t *testing.T, r *rig, k *Keeper, cause string) {
	t.Helper()
	k.Keep()
	first := k.Ready()
	if first == nil || !strings.Contains(first.Error(), r.binDir) || !strings.Contains(first.Error(), cause) {
		t.Errorf("Ready = %v, want an error that names %s and says %q", first, r.binDir, cause)
	}
	for range 5 {
		k.Keep()
	}
	if last := k.Ready(); first == nil || last == nil || last.Error() != first.Error() {
		t.Errorf("one trouble has two messages: %v; %v", first, last)
	}
	if exists(r.conf()) {
		t.Error("the runtime was pointed at a plugin that is not there")
	}
	if r.logged("level=ERROR") != 1 {
		t.Errorf("one trouble is to be logged once:\n%s", &r.logs)
	}
}

func checkMended(t *testing.T, r *rig, k *Keeper) {
	t.Helper()
	k.Keep()
	r.says(r.facts())
	if err := k.Ready(); err != nil {
		t.Errorf("Ready = %v after the trouble", err)
	}
	if !exists(r.conf()) || !exists(r.shim()) {
		t.Error("a file is missing after the trouble")
	}
}

func TestConfDirOfTheRuntimeChanges(t *testing.T) {
	r := newRig(t)
	k := r.standing()
	old := r.conf()
	other := filepath.Join(r.confDir, "10-other.conflist")
	r.write(other, "{}")
	r.confDir = filepath.Join(r.dir, "new.d")
	r.says(r.facts())
	wantError(t, k.Ready(), "not installed", r.confDir, "yet")
	k.Keep()
	if exists(old) || !exists(other) || !exists(r.conf()) {
		t.Errorf("old %v, other's %v, new %v; want the new one and what others wrote", exists(old), exists(other), exists(r.conf()))
	}
	r.says(r.facts())
	if err := k.Ready(); err != nil {
		t.Error(err)
	}
	r.binDir = filepath.Join(r.dir, "newbin")
	r.says(r.facts())
	wantError(t, k.Ready(), "not installed", r.binDir, "yet")
	k.Keep()
	r.says(r.facts())
	if err := k.Ready(); err != nil || !exists(r.shim()) {
		t.Errorf("Ready = %v, shim: %v", err, exists(r.shim()))
	}
	if r.logged("level=WARN") != 0 {
		t.Errorf("a change of the runtime's settings is nobody's fault:\n%s", &r.logs)
	}
}

// Run installs as soon as the runtime tells where, and sees at once who takes
// the files.
func TestRunKeepsFiles(t *testing.T) {
	r := newRig(t)
	k := NewKeeper(r.config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	r.says(r.facts())
	waitFor(t, "the configuration", func() bool { return exists(r.conf()) })
	for _, path := range []string{r.conf(), r.confDir, r.shim(), r.binDir} {
		r.remove(path)
		waitFor(t, path, func() bool { return exists(r.conf()) && exists(r.shim()) })
	}
	cancel()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatal("Run does not end")
	}
}

// The runtime's bin dir changes: the shim goes there, and out of the old one.
func TestBinDirOfTheRuntimeChanges(t *testing.T) {
	r := newRig(t)
	k := r.standing()
	facts := r.facts()
	facts.BinDirs = []string{filepath.Join(r.dir, "other")}
	r.says(facts)
	k.Keep()
	if !exists(filepath.Join(r.dir, "other", PluginName)) || exists(r.shim()) {
		t.Errorf("the shim is in the new bin dir: %t, in the old one: %t",
			exists(filepath.Join(r.dir, "other", PluginName)), exists(r.shim()))
	}
	// Both change at once, to a directory that leads to the same.
	facts.ConfDir, facts.BinDirs = filepath.Join(r.dir, "conf2"), []string{filepath.Join(r.dir, "link")}
	if err := os.Symlink("other", facts.BinDirs[0]); err != nil {
		t.Fatal(err)
	}
	r.says(facts)
	k.Keep()
	if !exists(filepath.Join(r.dir, "other", PluginName)) || exists(r.conf()) {
		t.Errorf("the shim is gone from the directory in use, or the old configuration stays")
	}
}

// What a crash left between making a file and renaming it is removed at the start,
// and nothing else.
func TestUnfinishedFilesAreRemoved(t *testing.T) {
	unfinished := func(r *rig) []string {
		return []string{
			filepath.Join(r.confDir, "."+ConfListName+".12345.tmp"), filepath.Join(r.binDir, "."+PluginName+".987.tmp"),
		}
	}
	for name, keep := range map[string]func(*rig){
		"keeper": func(r *rig) { NewKeeper(r.config).Keep() },
		"mirror": func(r *rig) { NewMirror(r.config).Keep() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.write(filepath.Join(r.config.NetworkConfDir, "10-net.conf"), "{}")
			others := []string{
				filepath.Join(r.binDir, ".bridge.12345.tmp"), filepath.Join(r.binDir, "."+PluginName+".mine.tmp"),
				filepath.Join(r.confDir, "."+ConfListName+".12345"),
			}
			for _, path := range append(unfinished(r), others...) {
				r.write(path, "half")
			}
			r.says(r.facts())
			keep(r)
			for _, path := range unfinished(r) {
				if exists(path) {
					t.Errorf("%s is left", path)
				}
			}
			for _, path := range others {
				if !exists(path) {
					t.Errorf("%s is removed", path)
				}
			}
		})
	}
}
