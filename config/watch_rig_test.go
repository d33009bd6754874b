package config

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crinet-project/crinet/probe"
)

// rig is a watcher on directories of its own. Nothing exists in root yet.
type rig struct {
	t               *testing.T
	root, conf, bin string
	cfg             WatcherConfig
	w               *Watcher
	end             func()                         // ends Run and waits for it
	open            func() (*notifications, error) // replaces inotify, if set

	mu      sync.Mutex
	changes []*Snapshot
	log     strings.Builder
}

// newRig makes a rig that has a bin dir with bridge and loopback.
func newRig(t *testing.T) *rig {
	r := &rig{t: t, root: t.TempDir()}
	r.conf, r.bin = r.root+"/etc/net.d", r.root+"/opt/bin"
	r.mkdir("opt/bin")
	versions := []string{"0.1.0", "0.3.1", "0.4.0", "1.0.0"}
	addPlugin(t, r.bin, "bridge", versions...)
	addPlugin(t, r.bin, "loopback", versions...)
	r.cfg = WatcherConfig{
		ConfDir: r.conf,
		Prober:  probe.New([]string{r.bin}, probe.Config{}),
		Log:     slog.New(slog.NewTextHandler(r, nil)),
		OnChange: func(s *Snapshot) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.changes = append(r.changes, s)
		},
	}
	return r
}

// Write is the log.
func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *rig) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) mkdir(path string) {
	r.t.Helper()
	r.must(os.MkdirAll(filepath.Join(r.root, path), 0o755))
}
func (r *rig) symlink(to, path string) {
	r.t.Helper()
	r.must(os.Symlink(to, filepath.Join(r.root, path)))
}
func (r *rig) remove(path string) { r.t.Helper(); r.must(os.RemoveAll(filepath.Join(r.root, path))) }
func (r *rig) replace(path, content string) {
	r.t.Helper()
	replace(r.t, filepath.Join(r.root, path), content, 0o644)
}
func (r *rig) rename(from, to string) {
	r.t.Helper()
	r.must(os.Rename(filepath.Join(r.root, from), filepath.Join(r.root, to)))
}

// write writes in place.
func (r *rig) write(path, content string) {
	r.t.Helper()
	r.must(os.WriteFile(filepath.Join(r.root, path), []byte(content), 0o644))
}

// start makes the watcher and waits until it watches.
func (r *rig) start() {
	r.t.Helper()
	w, err := NewWatcher(r.t.Context(), r.cfg)
	r.must(err)
	r.w = w
	if r.open != nil {
		w.open = r.open
	}
	r.run()
	r.until("the watches", func() bool { s := w.Stats(); return s.Rearms > 0 || s.WatchError != "" })
}

func (r *rig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.w.Run(ctx) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	r.t.Cleanup(r.end)
}

// until waits until f holds.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain for %s; %+v\n%s\nlog:\n%s", what, r.w.Stats(), dump(r.w.Snapshot(), r.bin), r.logged())
		}
	}
}

// names returns the usable networks, in order.
func (r *rig) names() string {
	var names []string
	for _, n := range r.w.Snapshot().Networks {
		name := n.Name
		if n.Stale != "" {
			name += "(stale)"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// want waits for the usable networks.
func (r *rig) want(names string) {
	r.t.Helper()
	r.until(fmt.Sprintf("the networks %q", names), func() bool { return r.names() == names })
}
