package cni

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/keep"
	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/config"
)

// DEL finds the binaries of ADD when the bin dirs are empty, in a search path with those
// that plugins run themselves; also for an attachment that only the cache knows.
func TestDelWithKeptBinaries(t *testing.T) {
	b := newBench(t, conflist("1.0.0", "good", "good2"))
	b.network.Plugins = []config.NetworkPlugin{
		{Type: "good", IPAM: "mute", Delegates: []string{"", "old"}}, {Type: "good2"}, {Type: "not-there"},
	}
	store := keep.Open(filepath.Join(t.TempDir(), "kept"), slog.New(slog.DiscardHandler))
	b.plugin = New(Config{
		BinDirs: []string{b.dir}, CacheDir: b.path("cache"), Timeout: 10 * time.Second, Keeper: store,
		Selected: func() (*config.Network, error) { return b.network, nil }, Runner: pluginexec.New(pluginexec.Config{}),
	})
	a := b.planned(t)
	var err error
	if a.Result, err = b.plugin.SetUpPod(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	cached, err := b.plugin.Cached(a.ContainerID)
	if err != nil || len(cached) != 1 {
		t.Fatalf("Cached = %v, %v", cached, err)
	}
	if diff := cmp.Diff(a.Kept, cached[0].Kept); diff != "" || len(a.Kept) != 4 {
		t.Errorf("kept: %v; the cache (-want +got):\n%s", a.Kept, diff)
	}
	for name := range scripts {
		if err := os.Remove(b.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.plugin.TearDownPod(t.Context(), &cached[0]); err != nil {
		t.Fatal(err)
	}
	calls, _ := b.logged(t)
	if want := []string{"good ADD", "good2 ADD", "good2 DEL", "good DEL"}; !slices.Equal(calls, want) {
		t.Errorf("calls: %q, want %q", calls, want)
	}
	env, err := os.ReadFile(b.path("env"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(env)) {
		if path, found := strings.CutPrefix(strings.TrimSpace(line), "CNI_PATH="); found {
			for _, typ := range []string{"mute", "old"} {
				if _, err := FindPlugin(typ, filepath.SplitList(path)); err != nil {
					t.Errorf("a plugin does not find %s: %v", typ, err)
				}
			}
		}
	}
	if b.plugin.searched(&Attachment{})[0] != b.dir || len(b.plugin.searched(a)) != 5 {
		t.Errorf("searched: %q", b.plugin.searched(a))
	}
}
