package config

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"
)

// kept waits until the last good versions are those of the files, by their
// contents.
func (r *rig) kept(n int, contents ...string) {
	r.t.Helper()
	r.until("the versions in "+r.cfg.LastGoodFile, func() bool {
		data, err := os.ReadFile(r.cfg.LastGoodFile)
		for _, content := range contents {
			if !strings.Contains(string(data), base64.StdEncoding.EncodeToString([]byte(content))) {
				return false
			}
		}
		return err == nil && strings.Count(string(data), `"data"`) == n
	})
}

// A file that is broken when crinetd starts keeps the version that was good
// before; one that is gone keeps nothing.
func TestLastGoodSurvivesRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.LastGoodFile = r.root + "/lastgood.json"
	r.mkdir("etc/net.d/b")
	r.write("etc/net.d/1.conflist", list1("a"))
	r.write("etc/net.d/2.conflist", list1("b"))
	r.write("etc/net.d/b/1.conf", `{"type":"loopback"}`)
	r.write("etc/net.d/3.conflist", list1("c"))
	r.start()
	r.want("a b c")
	r.kept(3, list1("a"), list1("b"), `{"type":"loopback"}`, list1("c"))

	r.end()
	r.write("etc/net.d/1.conflist", list1("a")[:20]) // broken while crinetd is away
	r.write("etc/net.d/b/1.conf", "{")
	r.remove("etc/net.d/3.conflist")
	r.start()
	r.want("a(stale) b(stale)")
	if b := r.w.Snapshot().Networks[1]; len(b.Plugins) != 2 || b.Plugins[1].Type != "loopback" {
		t.Errorf("the plugin in the network's folder is not kept: %v", b)
	}
	r.kept(2, list1("a"), list1("b"))
	r.end()
	r.write("etc/net.d/3.conflist", "{") // it was gone: broken, and nothing to keep
	r.start()
	r.want("a(stale) b(stale)")

	r.write("etc/net.d/1.conflist", list1("new"))
	r.want("new b(stale)")
	r.kept(2, list1("new"), list1("b"), `{"type":"loopback"}`)
	r.end()
	r.write("etc/net.d/1.conflist", "")
	r.start()
	r.want("new(stale) b(stale)")
	r.remove("etc/net.d")
	r.want("")
	r.kept(0)
}

// What is kept is of use for its own conf dir only, and garbage is none.
func TestLastGoodForeign(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.LastGoodFile = r.root + "/lastgood.json"
	r.mkdir("etc/net.d")
	r.mkdir("other")
	r.write("etc/net.d/1.conflist", list1("a"))
	r.write("other/1.conflist", "")
	r.start()
	r.kept(1)
	r.end()
	r.cfg.ConfDir = r.root + "/other"
	r.start()
	r.want("")
	r.kept(0)
	r.end()
	r.write("lastgood.json", "garbage")
	r.start()
	r.want("")
	r.until("the report", func() bool { return strings.Contains(r.logged(), "cannot be read") })
	r.write("other/1.conflist", list1("b"))
	r.kept(1, list1("b"))
}

// A state dir that cannot be written costs nothing but what it is for.
func TestLastGoodCannotBeKept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.cfg.LastGoodFile = r.root + "/missing/lastgood.json"
	r.mkdir("etc/net.d")
	r.start()
	for _, name := range []string{"a", "b"} {
		r.write("etc/net.d/1.conflist", list1(name))
		r.want(name)
	}
	r.until("the report", func() bool { return strings.Contains(r.logged(), "cannot be kept") })
	r.mkdir("missing")
	r.kept(1, list1("b")) // tried again without another change
}
