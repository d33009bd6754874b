package config

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// selector is a Selection of a snapshot that tests exchange.
func selector(networkPlugin string) (s *Selection, current **Snapshot, cidrKnown *bool, log *strings.Builder) {
	log, current, cidrKnown = &strings.Builder{}, new(*Snapshot), new(bool)
	return NewSelection(SelectionConfig{
		NetworkPlugin: networkPlugin,
		Snapshot:      func() *Snapshot { return *current },
		PodCIDRKnown:  func() bool { return *cidrKnown },
		Log:           slog.New(slog.NewTextHandler(log, nil)),
	}), current, cidrKnown, log
}

func TestSelectionReason(t *testing.T) {
	t.Parallel()
	plugins, _ := standard(t)
	good := Scan(confDir("1.conflist", list1("a"), "2.conflist", list1("b"), "3.conf", "{"), plugins, nil, ScanOptions{})
	stale := Scan(confDir("1.conflist", "", "2.conflist", list1("b")), plugins, good, ScanOptions{})
	const broken = "/etc/cni/net.d/3.conf:1:1: is broken: unexpected end of JSON input"
	for _, tt := range []struct {
		plugin       string
		snapshot     *Snapshot
		want, reason string
		notice       string
	}{
		{"cni", good, "a", "the first usable network in /etc/cni/net.d", "network a (1.conflist): the first usable network in /etc/cni/net.d; " + broken},
		{"b", good, "b", "its name is the value of --network-plugin", "network b (2.conflist): its name is the value of --network-plugin; " + broken},
		{"bridge", good, "a", "the first network that begins with a plugin of type bridge; none has that name", "network a (1.conflist): the first network that begins with a plugin of type bridge; none has that name; " + broken},
		{"cni", stale, "a", "the first usable network in /etc/cni/net.d; the last good version of its file is used",
			"network a (1.conflist): the first usable network in /etc/cni/net.d; the last good version of its file is used; /etc/cni/net.d/1.conflist: is empty; its last good version is used"},
		{"c", good, "", "", broken},
	} {
		s, current, _, _ := selector(tt.plugin)
		*current = tt.snapshot
		network, err := s.Selected()
		if (err == nil) != (tt.want != "") || (network != nil && network.Name != tt.want) {
			t.Errorf("%s: selects %v, %v; want %q", tt.plugin, network, err, tt.want)
		}
		if got := s.Reason(); got != tt.reason {
			t.Errorf("%s: reason %q, want %q", tt.plugin, got, tt.reason)
		}
		if got := s.Notice(); got != tt.notice {
			t.Errorf("%s: notice %q, want %q", tt.plugin, got, tt.notice)
		}
	}
}

func TestSelectionNoop(t *testing.T) {
	t.Parallel()
	s := NewSelection(SelectionConfig{})
	if n, err := s.Selected(); n != nil || !errors.Is(err, ErrNoop) || s.Notice()+s.Reason() != "" || len(s.Reloads()) != 0 {
		t.Errorf("%v, %v, notice %q, reason %q", n, err, s.Notice(), s.Reason())
	}
}

// However much is wrong, the notice fits a condition.
func TestSelectionNoticeIsShort(t *testing.T) {
	t.Parallel()
	s, current, _, _ := selector("cni")
	var files []string
	for range 100 {
		files = append(files, "é.conf", "{")
	}
	*current = Scan(confDir(files...), nil, nil, ScanOptions{})
	if n := s.Notice(); len(n) > maxNotice || len(n) < maxNotice-10 || !utf8.ValidString(n) || !strings.HasSuffix(n, "…") {
		t.Errorf("%d bytes: %s", len(n), n)
	}
}

// A change is kept, and logged if it changes what new pods get.
func TestSelectionChanged(t *testing.T) {
	t.Parallel()
	plugins, _ := standard(t)
	s, current, cidrKnown, log := selector("cni")
	needs := `{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}}`
	generation := uint64(0)
	change := func(logged string, files ...string) {
		t.Helper()
		log.Reset()
		generation++
		*current = Scan(confDir(files...), plugins, nil, ScanOptions{})
		(*current).Generation, (*current).Changed, (*current).Why = generation, time.Unix(int64(generation), 0), "change"
		s.Changed(t.Context(), *current)
		got := log.String()
		if logged == "" && got != "" || !strings.Contains(got, logged) {
			t.Errorf("change %d: logged %q, want %q", generation, got, logged)
		}
		if r := s.Reloads()[0]; r != (Reload{Generation: generation, Time: (*current).Changed, Why: "change"}) {
			t.Errorf("change %d: the last reload is %+v", generation, r)
		}
	}
	change("new pods are refused")
	change("network selected", "1.conflist", list1("a"))
	change("", "1.conflist", list1("a"), "2.conflist", list1("b"))
	change(`network="b (`, "2.conflist", list1("b"))
	change("until UpdateRuntimeConfig tells it", "1.conflist", one("n", "1.0.0", needs))
	*cidrKnown = true
	change("network selected", "1.conflist", list1("a"))
	change("needs", "1.conflist", one("needs", "1.0.0", needs))
	if strings.Contains(log.String(), "until UpdateRuntimeConfig") {
		t.Errorf("the pod CIDR is known: %s", log)
	}
	for range maxReloads {
		change("", "1.conflist", one("needs", "1.0.0", needs))
	}
	if n := len(s.Reloads()); n != maxReloads {
		t.Errorf("%d reloads are kept, want %d", n, maxReloads)
	}
	s.Reloads()[0].Why = "changed"
	if s.Reloads()[0].Why != "change" {
		t.Error("a caller can change the history")
	}
}
