package install

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// limit bounds every wait for something that must happen.
const limit = 20 * time.Second

// shimText is longer than a page, so that half of it could be seen.
var shimText = "#!/bin/sh\n" + strings.Repeat("#\n", 1<<16)

// rig is a node of the test's own: a runtime that says what the test sets, and
// directories.
type rig struct {
	t       testing.TB
	dir     string
	confDir string // where the runtime looks
	binDir  string
	config  Config

	mu     sync.Mutex
	answer upstream.Answer
	wakes  int
	logs   bytes.Buffer
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, dir: dir, confDir: filepath.Join(dir, "net.d"), binDir: filepath.Join(dir, "bin")}
	r.config = Config{
		Log: slog.New(slog.NewTextHandler(r, nil)), Runtime: r,
		Shim: filepath.Join(dir, "crinet"), Socket: "/run/crinet/cni.sock", NetworkConfDir: filepath.Join(dir, "networks"),
	}
	r.write(r.config.Shim, shimText)
	return r
}

// Last and Wake are the runtime.
func (r *rig) Last() upstream.Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answer
}

func (r *rig) Wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakes++
}

// Write is the log.
func (r *rig) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logs.Write(p)
}

// logged is how many lines of the log contain all of the texts.
func (r *rig) logged(texts ...string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
lines:
	for line := range strings.Lines(r.logs.String()) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		n++
	}
	return n
}

// facts are those of a containerd 2 that has loaded crinet's configuration.
func (r *rig) facts() *upstream.Facts {
	return &upstream.Facts{
		Name: "containerd", Version: "v2.4.2", Told: true, ConfDir: r.confDir, BinDirs: []string{r.binDir}, MaxConfNum: 1,
		InternalLoopback: true, Handlers: map[string]string{}, Loaded: []string{networkName},
	}
}

// says has the runtime answer a question that is put now.
func (r *rig) says(facts *upstream.Facts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = upstream.Answer{Facts: facts, Asked: time.Now()}
}

// standing is a keeper whose files stand and are used.
func (r *rig) standing() *Keeper {
	r.t.Helper()
	k := NewKeeper(r.config)
	r.says(r.facts())
	k.Keep() // writes
	k.Keep() // sees that they stay
	r.says(r.facts())
	if err := k.Ready(); err != nil {
		r.t.Fatal(err)
	}
	return k
}

func (r *rig) conf() string { return filepath.Join(r.confDir, ConfListName) }
func (r *rig) shim() string { return filepath.Join(r.binDir, PluginName) }

func (r *rig) write(path, text string) {
	r.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) read(path string) string {
	r.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(data)
}

func (r *rig) remove(path string) {
	r.t.Helper()
	if err := os.RemoveAll(path); err != nil {
		r.t.Fatal(err)
	}
}

// exists says whether there is a file.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// wantError fails unless an error says all of the texts.
func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", texts)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it does not come", what)
		}
	}
}
