package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/probe"
)

// boots are starts of crinetd on one node, with one state dir.
type boots struct {
	t       *testing.T
	file    string
	plugins *probe.Plugins
	now     *Snapshot
	log     strings.Builder
}

func newBoots(t *testing.T) *boots {
	t.Helper()
	plugins, _ := standard(t)
	b := &boots{t: t, file: filepath.Join(t.TempDir(), "selected.json"), plugins: plugins}
	b.holds()
	return b
}

// holds makes the conf dir hold these files.
func (b *boots) holds(nameContent ...string) {
	dir := confDir(nameContent...)
	slices.SortFunc(dir.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	b.now = Scan(dir, b.plugins, nil, ScanOptions{})
}

// start starts crinetd.
func (b *boots) start(bootID, networkPlugin string, wait time.Duration) *Selection {
	s := NewSelection(SelectionConfig{
		NetworkPlugin: networkPlugin, Snapshot: func() *Snapshot { return b.now }, PodCIDRKnown: func() bool { return true },
		File: b.file, BootID: bootID, Wait: wait, Log: slog.New(slog.NewTextHandler(&b.log, nil)),
	})
	s.Changed(b.t.Context(), b.now)
	return s
}

// wants fails unless the network is selected; an empty one for none, with the texts in
// the reason.
func (b *boots) wants(s *Selection, network string, texts ...string) {
	b.t.Helper()
	got, err := s.Selected()
	if (got == nil) != (network == "") || got != nil && got.Name != network {
		b.t.Fatalf("selected is %v, %v; want %q", got, err, network)
	}
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			b.t.Errorf("no network: %v; want %q in it", err, text)
		}
	}
	if err != nil && len(err.Error()) > maxSelectError {
		b.t.Errorf("%d bytes: %v", len(err.Error()), err)
	}
}

// After a reboot no other network is taken while that of before is late.
func TestLateNetworkIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, before, flag string // the conf dir before the reboot, --network-plugin
		first, after       []string
		held               bool
		last               string // what is selected with all there
	}{
		{"another comes first", "20-real.conflist", "cni", []string{"30-other.conflist", list1("other")}, nil, true, "real"},
		{"nothing, then another", "20-real.conflist", "cni", nil, []string{"30-other.conflist", list1("other")}, true, "real"},
		{"a new one is before it, when both are there", "20-real.conflist", "cni", []string{"10-other.conflist", list1("other")}, nil, true, "other"},
		{"pinned by name: it or none", "20-real.conflist", "real", []string{"10-other.conflist", list1("other")}, nil, true, "real"},
		{"by the first plugin's type", "20-real.conflist", "bridge", []string{"30-other.conflist", list1("other")}, nil, true, "real"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBoots(t)
			b.holds(tt.before, list1("real"))
			s := b.start("one", tt.flag, time.Hour)
			b.wants(s, "real") // a node that never had one is not held up
			if s.Settled() {
				t.Error("the first start of a node counts as settled")
			}
			b.holds(tt.first...)
			s = b.start("two", tt.flag, time.Hour)
			b.wants(s, "", "waiting for network real in /etc/cni/net.d since ")
			if s.Wanted() != "real" || s.Reason() != "" {
				t.Errorf("wanted is %q for %q", s.Wanted(), s.Reason())
			}
			what, since := s.Waiting()
			b.holds(append(tt.first, tt.after...)...)
			s.Changed(t.Context(), b.now)
			b.wants(s, "", "waiting for network real")
			if again, then := s.Waiting(); again != what || !then.Equal(since) {
				t.Errorf("waits for %q since %v, before for %q since %v", again, then, what, since)
			}
			// crinetd is started again before the network has come.
			b.wants(b.start("two", tt.flag, time.Hour), "")
			b.holds(append(append(tt.first, tt.after...), tt.before, list1("real"))...)
			s.Changed(t.Context(), b.now)
			b.wants(s, tt.last)
			if what, _ := s.Waiting(); what != "" {
				t.Errorf("waits for %q with a network selected", what)
			}
			// From now on an operator's change counts at once, also over a restart.
			if tt.flag == "cni" {
				b.holds("40-third.conflist", list1("third"))
				s.Changed(t.Context(), b.now)
				b.wants(s, "third")
				b.holds("50-fourth.conflist", list1("fourth"))
				s = b.start("two", tt.flag, time.Hour)
				b.wants(s, "fourth")
				if !s.Settled() {
					t.Error("a restart does not count as settled")
				}
			}
		})
	}
}

// What was asked for otherwise, or by nobody, is not waited for.
func TestNothingToWaitFor(t *testing.T) {
	t.Parallel()
	other := []string{"10-other.conflist", list1("other")}
	for _, tt := range []struct {
		name, kept, flag string
		wait             time.Duration
	}{
		{"no wait", `{"confDir":"/etc/cni/net.d","networkPlugin":"cni","network":"real","bootID":"one"}`, "cni", 0},
		{"another flag", `{"confDir":"/etc/cni/net.d","networkPlugin":"real","network":"real","bootID":"one"}`, "cni", time.Hour},
		{"another conf dir", `{"confDir":"/etc/cni","networkPlugin":"cni","network":"real","bootID":"one"}`, "cni", time.Hour},
		{"the same boot", `{"confDir":"/etc/cni/net.d","networkPlugin":"cni","network":"real","bootID":"two"}`, "cni", time.Hour},
		{"the name that the flag says", `{"confDir":"/etc/cni/net.d","networkPlugin":"other","network":"real","bootID":"one"}`, "other", time.Hour},
		{"no name", `{"confDir":"/etc/cni/net.d","networkPlugin":"cni","bootID":"one"}`, "cni", time.Hour},
		{"a file that is cut off", `{"confDir":`, "cni", time.Hour},
		{"an empty file", ``, "cni", time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBoots(t)
			if err := os.WriteFile(b.file, []byte(tt.kept), 0o600); err != nil {
				t.Fatal(err)
			}
			b.holds(other...)
			b.wants(b.start("two", tt.flag, tt.wait), "other")
			kept, err := os.ReadFile(b.file)
			if err != nil || !strings.Contains(string(kept), `"network":"other","bootID":"two"`) {
				t.Errorf("what is kept then: %s, %v", kept, err)
			}
		})
	}
}

// The wait ends: another network is taken then, and that is told.
func TestNetworkThatDoesNotCome(t *testing.T) {
	t.Parallel()
	b := newBoots(t)
	b.holds("20-real.conflist", list1("real"))
	b.start("one", "cni", time.Hour)
	b.holds("30-other.conflist", list1("other"))
	s := b.start("two", "cni", 50*time.Millisecond)
	told := 0
	s.Run(t.Context(), func() { told++ })
	b.wants(s, "other")
	if log := b.log.String(); told != 1 || !strings.Contains(log, "has not come") || strings.Count(log, "network selected") != 2 {
		t.Errorf("told %d times, logged %s", told, log)
	}
	if notice := s.Notice(); !strings.Contains(notice, "network real, which pods had before the reboot, has not come within 50ms") {
		t.Errorf("notice %q", notice)
	}
	b.holds("20-real.conflist", list1("real"), "30-other.conflist", list1("other"))
	s.Changed(t.Context(), b.now)
	b.wants(s, "real")
	if notice := s.Notice(); strings.Contains(notice, "before the reboot") {
		t.Errorf("notice %q with the network there", notice)
	}
	s = b.start("two", "cni", time.Hour)
	s.Run(t.Context(), func() { t.Error("there was nothing to wait for") })
}

// What a network lacks is named, with the directory.
func TestWaitsForBinaries(t *testing.T) {
	t.Parallel()
	b := newBoots(t)
	b.holds("20-real.conflist", list1("real"))
	b.start("one", "cni", time.Hour)
	for _, tt := range []struct{ plugins, want string }{
		{`{"type":"cilium-cni"}`, "waiting for plugin cilium-cni in %s since "},
		{`{"type":"bridge","ipam":{"type":"missing"}},{"type":"gone"}`, "waiting for IPAM plugin missing, plugin gone in %s since "},
		{`{"type":"bridge"},{"type":"old"}`, "waiting for network real (20-real.conflist) to be usable since "},
	} {
		b.holds("10-other.conflist", one("other", "1.0.0", `{"type":"absent"}`), "20-real.conflist", one("real", "1.1.0", tt.plugins), "30-third.conflist", list1("third"))
		want := tt.want
		if strings.Contains(want, "%s") {
			want = fmt.Sprintf(want, dirPaths(b.plugins))
		}
		b.wants(b.start("two", "cni", time.Hour), "", want, "--network-wait")
	}
	// Nobody knows which one will be the network.
	for _, tt := range []struct {
		files []string
		want  string
	}{
		{nil, "waiting for a usable CNI configuration in /etc/cni/net.d since "},
		{[]string{"1.conflist", one("n", "1.0.0", `{"type":"absent"}`)}, "waiting for plugin absent in "},
	} {
		fresh := newBoots(t)
		fresh.holds(tt.files...)
		fresh.wants(fresh.start("one", "cni", time.Hour), "", tt.want, "no usable CNI network")
	}
}

// flannel is usable when what it delegates to is there.
func TestFlannelNeedsItsDelegates(t *testing.T) {
	t.Parallel()
	_, bin := standard(t)
	addPlugin(t, bin, "flannel", "1.0.0")
	for _, tt := range []struct{ delegate, want string }{
		{`{}`, ""},
		{`{"type":"ptp"}`, "plugin ptp, to which flannel delegates, is no executable in " + bin},
		{`{"ipam":{"type":"whereabouts"}}`, "plugin whereabouts, to which flannel delegates, is no executable in " + bin},
		{`{"type":"bridge","hairpinMode":true}`, ""},
	} {
		prober := probe.New([]string{bin}, probe.Config{})
		l := load(confDir("1.conflist", one("pods", "1.0.0", `{"type":"flannel","delegate":`+tt.delegate+`}`)), nil)
		plugins, err := prober.Probe(t.Context(), l.types(), time.Minute)
		prober.Stop()
		if err != nil {
			t.Fatal(err)
		}
		s := l.snapshot(plugins, ScanOptions{})
		got := ""
		if len(s.Problems) > 0 {
			got = s.Problems[0].Reason
		}
		if got != tt.want || (len(s.Networks) == 1) != (tt.want == "") {
			t.Errorf("delegate %s: %q, want %q", tt.delegate, got, tt.want)
		}
	}
}
