package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// watchTest is one way to change directories under a watcher.
type watchTest struct {
	name string
	prep func(r *rig)
	do   func(r *rig)
}

// Ways to be told of changes.
const (
	both    = "" // as in the product
	events  = " by events only"
	looking = " without inotify"
)

func runWatchTests(t *testing.T, tests []watchTest, ways ...string) {
	t.Parallel()
	for _, way := range ways {
		for _, tt := range tests {
			t.Run(tt.name+way, func(t *testing.T) {
				t.Parallel()
				r := newRig(t)
				tt.prep(r)
				switch way {
				case events:
					r.cfg.Poll = time.Hour
				case looking:
					r.cfg.Poll = 100 * time.Millisecond
					r.open = func() (*notifications, error) { return nil, errors.New("no inotify") }
				}
				r.start()
				tt.do(r)
				if s := r.w.Stats(); (s.WatchError != "") != (way == looking) {
					t.Errorf("watching: %s", s.WatchError)
				}
			})
		}
	}
}

// TestWatchFiles does to files what users do, and waits for what they expect.
func TestWatchFiles(t *testing.T) {
	runWatchTests(t, []watchTest{
		{"create, change, remove", func(r *rig) { r.mkdir("etc/net.d") }, func(r *rig) {
			r.want("")
			r.write("etc/net.d/1.conflist", list1("a"))
			r.want("a")
			r.write("etc/net.d/1.conflist", list1("b"))
			r.want("b")
			r.write("etc/net.d/0.conf", `{"name":"first","type":"loopback"}`)
			r.want("first b")
			r.remove("etc/net.d/1.conflist")
			r.want("first")
			r.remove("etc/net.d/0.conf")
			r.want("")
		}},
		{"half-written and empty", func(r *rig) { r.mkdir("etc/net.d"); r.write("etc/net.d/1.conflist", list1("a")) }, func(r *rig) {
			r.write("etc/net.d/1.conflist", list1("b")[:30])
			r.want("a(stale)")
			r.write("etc/net.d/1.conflist", "")
			r.until("another reason", func() bool { return strings.Contains(r.w.Snapshot().Networks[0].Stale, "is empty") })
			r.write("etc/net.d/1.conflist", list1("b"))
			r.want("b")
		}},
		{"rename into, within and out of", func(r *rig) { r.mkdir("etc/net.d") }, func(r *rig) {
			r.write("a", list1("a"))
			r.rename("a", "etc/net.d/2.conflist")
			r.want("a")
			r.replace("etc/net.d/1.conflist", list1("b"))
			r.want("b a")
			r.rename("etc/net.d/1.conflist", "etc/net.d/3.conflist")
			r.want("a b")
			r.rename("etc/net.d/2.conflist", "out")
			r.want("b")
		}},
	}, events, looking)
}

// TestWatchLinks is about names that lead elsewhere.
func TestWatchLinks(t *testing.T) {
	runWatchTests(t, []watchTest{
		{"hard link", func(r *rig) { r.mkdir("etc/net.d"); r.write("a", list1("a")) }, func(r *rig) {
			r.must(os.Link(r.root+"/a", r.conf+"/1.conflist"))
			r.want("a")
			r.write("a", list1("b")) // by its other name
			r.want("b")
			r.remove("a")
			r.write("etc/net.d/1.conflist", list1("c"))
			r.want("c")
		}},
		{"symlink to a file", func(r *rig) { r.mkdir("etc/net.d"); r.mkdir("share/x"); r.write("share/x/a", list1("a")) }, func(r *rig) {
			r.symlink("../../share/x/a", "etc/net.d/1.conflist")
			r.want("a")
			r.write("share/x/a", list1("b"))
			r.want("b")
			r.replace("share/x/a", list1("c"))
			r.want("c")
			r.rename("share/x", "share/y")
			r.want("")
			r.mkdir("share/x")
			r.write("share/x/a", list1("d"))
			r.want("d")
		}},
		{"symlinked conf dir", func(r *rig) {
			r.mkdir("one")
			r.mkdir("two")
			r.mkdir("etc")
			r.write("one/1.conflist", list1("a"))
			r.write("two/1.conflist", list1("b"))
			r.symlink(r.root+"/one", "etc/net.d")
		}, func(r *rig) {
			r.want("a")
			r.write("one/2.conflist", list1("c"))
			r.want("a c")
			r.symlink("../two", "etc/new")
			r.rename("etc/new", "etc/net.d")
			r.want("b")
			r.write("two/1.conflist", list1("d"))
			r.want("d")
		}},
		{"..data swap of a mounted ConfigMap", func(r *rig) {
			r.mkdir("etc/net.d/..1")
			r.write("etc/net.d/..1/10.conflist", list1("a"))
			r.symlink("..1", "etc/net.d/..data")
			r.symlink("..data/10.conflist", "etc/net.d/10.conflist")
		}, func(r *rig) {
			for i, name := range []string{"b", "c", "d"} {
				dir := fmt.Sprintf("etc/net.d/..%d", i+2)
				r.mkdir(dir)
				r.write(dir+"/10.conflist", list1(name))
				r.symlink(filepath.Base(dir), "etc/net.d/..data_tmp")
				r.rename("etc/net.d/..data_tmp", "etc/net.d/..data")
				r.remove(fmt.Sprintf("etc/net.d/..%d", i+1))
				r.want(name)
			}
		}},
	}, both, looking)
}

// TestWatchDirs is about directories that come and go.
func TestWatchDirs(t *testing.T) {
	runWatchTests(t, []watchTest{
		{"dirs that come and go", func(*rig) {}, func(r *rig) {
			r.want("")
			if reason := r.w.Snapshot().DirReason; reason != "does not exist" {
				r.t.Errorf("DirReason %q", reason)
			}
			for _, name := range []string{"a", "b", "c"} {
				r.mkdir("etc/net.d")
				r.write("etc/net.d/1.conflist", list1(name))
				r.want(name)
				r.write("etc/net.d/1.conflist", list1(name+name))
				r.want(name + name)
				r.remove("etc")
				r.want("")
			}
			r.mkdir("etc/net.d")
			r.write("etc/net.d/1.conflist", list1("x"))
			r.want("x")
			r.remove("etc/net.d")
			r.mkdir("etc/net.d") // at once, perhaps the same inode
			r.write("etc/net.d/1.conflist", list1("y"))
			r.want("y")
			r.write("etc/net.d/1.conflist", list1("z"))
			r.want("z")
		}},
		{"a parent renamed away and back", func(r *rig) { r.mkdir("etc/net.d"); r.write("etc/net.d/1.conflist", list1("a")) }, func(r *rig) {
			r.rename("etc", "etc.old")
			r.want("")
			r.rename("etc.old", "etc")
			r.want("a")
			r.write("etc/net.d/1.conflist", list1("b"))
			r.want("b")
		}},
		{"the network's folder", func(r *rig) {
			r.mkdir("etc/net.d")
			r.write("etc/net.d/1.conflist", `{"name":"a","cniVersion":"1.0.0"}`)
		}, func(r *rig) {
			r.want("")
			r.mkdir("etc/net.d/a")
			r.write("etc/net.d/a/1.conf", `{"type":"bridge"}`)
			r.want("a")
			r.write("etc/net.d/a/2.conf", `{"type":"loopback"}`)
			r.until("its second plugin", func() bool { return len(r.w.Snapshot().Networks[0].Plugins) == 2 })
			r.write("etc/net.d/a/2.conf", "")
			r.want("a(stale)")
			r.remove("etc/net.d/a/2.conf")
			r.want("a")
			r.remove("etc/net.d/a")
			r.want("a(stale)") // a list without plugins is not good
		}},
	}, both, looking)
}

// TestWatchPlugins is about the bin dirs.
func TestWatchPlugins(t *testing.T) {
	runWatchTests(t, []watchTest{
		{"a binary that comes later, and goes", func(r *rig) {
			r.mkdir("etc/net.d")
			r.write("etc/net.d/1.conflist", one("a", "1.0.0", `{"type":"late"}`))
		}, func(r *rig) {
			r.want("")
			addPlugin(r.t, r.bin, "late", "1.0.0")
			r.want("a")
			addPlugin(r.t, r.bin, "late", "0.4.0") // a downgrade
			r.want("")
			addPlugin(r.t, r.bin, "late", "0.4.0", "1.0.0")
			r.want("a")
			r.must(os.Chmod(r.bin+"/late", 0o644))
			r.want("")
			r.must(os.Chmod(r.bin+"/late", 0o755))
			r.want("a")
			r.remove("opt/bin/late")
			r.want("")
		}},
		{"a bin dir that comes later, of symlinks", func(r *rig) {
			r.mkdir("etc/net.d")
			r.write("etc/net.d/1.conflist", list1("a"))
			r.rename("opt", "usr")
		}, func(r *rig) {
			r.want("")
			r.mkdir("opt/bin")
			r.symlink("../../usr/bin/bridge", "opt/bin/bridge")
			r.want("a")
			r.remove("usr/bin/bridge")
			r.want("")
			addPlugin(r.t, r.root+"/usr/bin", "bridge", "1.0.0")
			r.want("a")
		}},
	}, both, looking)
}
