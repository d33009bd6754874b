package install

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// Rows A1, A2 and A23: the node is ready when the runtime uses crinet, and else
// the message says which side is to blame and what to change.
func TestReadyNamesTheSideAndTheCure(t *testing.T) {
	for name, c := range map[string]struct {
		config func(*rig)                  // before crinet is installed
		facts  func(*rig, *upstream.Facts) // what the runtime says afterwards
		want   []string                    // nil: ready
	}{
		"loaded": {},
		"wrong conf dir flag": {
			config: func(r *rig) { r.config.ConfDir = filepath.Join(r.dir, "flag.d") },
			want:   []string{"containerd", "net.d", "--runtime-cni-conf-dir", "flag.d", "conf_dir", "config.toml"},
		},
		"conf dir flag that is a link": {
			config: func(r *rig) {
				r.write(filepath.Join(r.confDir, "x"), "")
				r.config.ConfDir = filepath.Join(r.dir, "link")
				if err := os.Symlink(r.confDir, r.config.ConfDir); err != nil {
					r.t.Fatal(err)
				}
			},
		},
		"conf dir flag in another spelling": {config: func(r *rig) { r.config.ConfDir = r.confDir + "/" }},
		"wrong bin dir flag": {
			config: func(r *rig) { r.config.BinDir = filepath.Join(r.dir, "flagbin") },
			want:   []string{"containerd", "bin", "--runtime-cni-bin-dir", "flagbin", "bin_dirs", "config.toml"},
		},
		"second bin dir by flag": {
			config: func(r *rig) { r.config.BinDir = filepath.Join(r.dir, "second") },
			facts:  func(r *rig, f *upstream.Facts) { f.BinDirs = append(f.BinDirs, r.config.BinDir) },
		},
		"another file first": {
			facts: func(_ *rig, f *upstream.Facts) { f.Loaded = []string{"calico"} },
			want:  []string{"has not loaded", ConfListName, "calico", "sort before"},
		},
		"watch lost (1.6)": {
			facts: func(_ *rig, f *upstream.Facts) { f.Loaded = nil },
			want:  []string{"has not loaded", ConfListName, "no network", "restart"},
		},
		"not loaded, with a reason": {
			facts: func(_ *rig, f *upstream.Facts) {
				f.Loaded, f.LoadError = nil, "failed to load CNI config file /x/00-bad.conf"
			},
			want: []string{"has not loaded", ConfListName, "no network", "/x/00-bad.conf"},
		},
		"loaded, but not usable": {
			facts: func(_ *rig, f *upstream.Facts) { f.LoadError = "cni plugin not initialized" },
			want:  []string{"cannot use", "net.d", "cni plugin not initialized"},
		},
		// containerd does not notice that the plugin is missing before a pod comes.
		"loopback missing": {
			facts: func(_ *rig, f *upstream.Facts) { f.InternalLoopback = false },
			want:  []string{"loopback", "bin", "install it", "use_internal_loopback", "config.toml"},
		},
		"loopback there": {
			config: func(r *rig) { r.write(filepath.Join(r.binDir, "loopback"), "#!/bin/sh\n") },
			facts:  func(_ *rig, f *upstream.Facts) { f.InternalLoopback = false },
		},
		"a runtime that does not tell": {
			facts: func(r *rig, f *upstream.Facts) {
				r.config.ConfDir, r.config.BinDir = r.confDir, r.binDir
				*f = upstream.Facts{Name: "cri-o"}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if c.config != nil {
				c.config(r)
			}
			facts := r.facts()
			if c.facts != nil {
				c.facts(r, facts)
			}
			r.says(facts)
			k := NewKeeper(r.config)
			k.Keep()
			r.says(facts)
			r.wakes = 0
			k.Keep()
			err := k.Ready()
			if c.want == nil {
				if err != nil || r.wakes != 0 {
					t.Errorf("Ready = %v, the runtime was asked %d times more; want nil and no question", err, r.wakes)
				}
				return
			}
			wantError(t, err, append(c.want, "the runtime's side")...)
			if r.wakes == 0 {
				t.Error("nobody asks whether the runtime is ready by now")
			}
		})
	}
}

func TestReadyBeforeAnythingIsInstalled(t *testing.T) {
	r := newRig(t)
	k := NewKeeper(r.config)
	wantError(t, k.Ready(), "the runtime's side", "has not answered yet")
	r.says(r.facts())
	wantError(t, k.Ready(), "the runtime's side", "not installed", r.confDir)
	r.answer.Err = errors.New("down")
	k.Keep()
	wantError(t, k.Ready(), "has not said yet", r.conf())
}

// Status waits for no file: not even when crinetd hangs in writing one.
func TestTellingDoesNotWaitForKeep(t *testing.T) {
	r := newRig(t)
	k := r.standing()
	k.mu.Lock() // as Keep does while it writes
	defer k.mu.Unlock()
	if err := k.Ready(); err != nil || !k.Serves("") || len(k.Unserved()) != 0 || k.Notice() != "" {
		t.Errorf("Ready = %v, Serves = %v, Unserved = %v, Notice = %q", err, k.Serves(""), k.Unserved(), k.Notice())
	}
}

// Row A5: handlers with a conf dir of their own are left alone, unless
// --runtime-handlers names them.
func TestHandlersWithConfDirsOfTheirOwn(t *testing.T) {
	r := newRig(t)
	kata, gvisor, same := filepath.Join(r.dir, "kata.d"), filepath.Join(r.dir, "gvisor.d"), r.confDir+"/"
	r.config.Handlers = []string{"kata", "not-there"}
	facts := r.facts()
	facts.Handlers = map[string]string{"kata": kata, "akata": kata, "gvisor": gvisor, "xen": filepath.Join(r.dir, "xen.d"), "crun": same}
	r.says(facts)
	k := NewKeeper(r.config)
	k.Keep()
	for handler, want := range map[string]bool{"": true, "runc": true, "kata": true, "akata": true, "crun": true, "gvisor": false, "xen": false} {
		if got := k.Serves(handler); got != want {
			t.Errorf("Serves(%q) = %v, want %v", handler, got, want)
		}
	}
	if got, want := k.Unserved(), map[string]string{"gvisor": gvisor, "xen": filepath.Join(r.dir, "xen.d")}; !maps.Equal(got, want) {
		t.Errorf("Unserved = %v, want %v", got, want)
	}
	if !exists(filepath.Join(kata, ConfListName)) || exists(gvisor) || !exists(r.conf()) {
		t.Errorf("configuration: own %v, kata's %v, gvisor's dir %v; want the first two", exists(r.conf()), exists(filepath.Join(kata, ConfListName)), exists(gvisor))
	}
	facts.Handlers = nil
	r.says(facts)
	k.Keep()
	if !k.Serves("gvisor") || exists(filepath.Join(kata, ConfListName)) {
		t.Error("handlers that the runtime no longer has are remembered")
	}
}

func TestNotice(t *testing.T) {
	for name, c := range map[string]struct {
		facts func(*rig, *upstream.Facts)
		want  []string // nil: nothing to say
	}{
		"a conf dir of its own": {func(*rig, *upstream.Facts) {}, nil},
		"not told":              {func(_ *rig, f *upstream.Facts) { f.Told, f.MaxConfNum = false, 0 }, nil},
		"max_conf_num 2":        {func(_ *rig, f *upstream.Facts) { f.MaxConfNum = 2 }, []string{"max_conf_num is 2", "config.toml"}},
		"max_conf_num 0":        {func(_ *rig, f *upstream.Facts) { f.MaxConfNum = 0 }, []string{"max_conf_num is 0"}},
		"shared":                {func(r *rig, f *upstream.Facts) { f.ConfDir = r.config.NetworkConfDir + "/" }, []string{"networks", "shares", "conf_dir"}},
		"a handler's own": {func(r *rig, f *upstream.Facts) {
			r.config.Handlers, f.Handlers = []string{"kata", "crun"}, map[string]string{"kata": "/nonexistent", "crun": r.confDir}
			f.HandlerMaxConfNum = map[string]int{"kata": 2, "crun": 1}
		}, []string{"cni_max_conf_num of runtime handler kata is 2", "/nonexistent"}},
		"handlers": {func(_ *rig, f *upstream.Facts) { f.Handlers = map[string]string{"kata": "/k", "gvisor": "/g"} },
			[]string{"runtime handler gvisor", "/g", "--runtime-handlers=gvisor", "runtime handler kata", "/k"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			facts := r.facts()
			c.facts(r, facts)
			r.config.ConfDir = r.confDir
			r.says(facts)
			k := NewKeeper(r.config)
			k.Keep()
			notice := k.Notice()
			if c.want == nil && notice != "" {
				t.Errorf("Notice = %q, want none", notice)
			}
			for _, text := range c.want {
				if !strings.Contains(notice, text) {
					t.Errorf("Notice = %q, want %q in it", notice, text)
				}
			}
			for range 20 {
				if again := k.Notice(); again != notice {
					t.Fatalf("one notice has two texts: %q, %q", notice, again)
				}
			}
		})
	}
	if notice := NewKeeper(newRig(t).config).Notice(); notice != "" {
		t.Errorf("Notice = %q before the runtime has answered", notice)
	}
}
