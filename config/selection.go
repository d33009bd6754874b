package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxReloads is how many changes Reloads returns.
	maxReloads = 10
	// maxNotice bounds Notice, which becomes the message of a Kubernetes
	// condition, in bytes.
	maxNotice = 1024
)

// ErrNoop is why no network is selected under noop.
var ErrNoop = errors.New("--network-plugin names no network: the noop plugin is selected")

// Reload is a change of what the conf dir and the bin dirs amount to.
type Reload struct {
	Generation uint64
	Time       time.Time
	Why        string
}

// Selection is the network that new pods get: --network-plugin applied to the
// newest snapshot. It is safe for concurrent use and answers from memory.
type Selection struct {
	cfg SelectionConfig

	awaited atomic.Pointer[awaited] // nil if no network of before the reboot is waited for
	settled bool                    // see Settled

	mu      sync.Mutex // guards what follows
	told    string     // what was logged last
	reloads []Reload   // the last ones, the latest first
	last    remembered // what the file holds
	ready   bool       // there is a network
	since   time.Time  // when that was not so any more, or the start
	late    string     // a network of before the reboot that did not come in time
}

// SelectionConfig is what a Selection needs.
type SelectionConfig struct {
	NetworkPlugin string           // the flag
	Snapshot      func() *Snapshot // a Watcher's; nil under noop
	// PodCIDRKnown reports whether the node's pod CIDR is known.
	PodCIDRKnown func() bool
	// File is where the selected network is remembered over reboots; empty for nowhere.
	// Its directory must exist. BootID tells one boot from another.
	File   string
	BootID string
	// Wait is how long after a reboot no other network is selected than the remembered
	// one, while that has not come (--network-wait).
	Wait time.Duration
	Log  *slog.Logger
}

// NewSelection returns a Selection. Changed must be called with the first
// snapshot and after each change.
func NewSelection(cfg SelectionConfig) *Selection {
	s := &Selection{cfg: cfg, since: time.Now()}
	s.recall()
	return s
}

// Selected returns the selected network. The error says why there is none, what is
// waited for and since when, in at most 1 KiB; under noop it is ErrNoop.
func (s *Selection) Selected() (*Network, error) {
	network, _, err := s.choose()
	return network, err
}

// choose returns the selected network and the snapshot that it is from.
func (s *Selection) choose() (*Network, *Snapshot, error) {
	if s.cfg.Snapshot == nil {
		return nil, nil, ErrNoop
	}
	held := s.awaited.Load() // before the snapshot: who waits no more must see what came
	now := s.cfg.Snapshot()
	network, err := now.Select(s.cfg.NetworkPlugin)
	if held != nil && (held.came(now, s.cfg.NetworkPlugin) || !time.Now().Before(held.until)) {
		held = nil
	}
	if err != nil || held != nil {
		return nil, now, s.refusal(now, held, err)
	}
	return network, now, nil
}

// Reason says why the selected network is selected; empty if there is none.
func (s *Selection) Reason() string {
	_, now, err := s.choose()
	if err != nil {
		return ""
	}
	return now.selectReason(s.cfg.NetworkPlugin)
}

// Notice names the selected network with the reason, and the files of the conf
// dir that are not used as they are. It has at most 1 KiB.
func (s *Selection) Notice() string {
	network, now, err := s.choose()
	if now == nil {
		return ""
	}
	var parts []string
	if err == nil {
		parts = append(parts, fmt.Sprintf("network %s (%s): %s", network.Name, filepath.Base(network.File), now.selectReason(s.cfg.NetworkPlugin)))
	}
	s.mu.Lock()
	late := s.late
	s.mu.Unlock()
	if late != "" && !now.has(late) {
		parts = append(parts, fmt.Sprintf("network %s, which pods had before the reboot, has not come within %s", late, s.cfg.Wait))
	}
	for _, p := range now.Problems {
		parts = append(parts, p.String())
	}
	return clip(strings.Join(parts, "; "), maxNotice)
}

// Reloads returns the last changes, the latest first.
func (s *Selection) Reloads() []Reload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reloads)
}

// Changed notes a new snapshot, and logs what it means for new pods if that is
// news.
func (s *Selection) Changed(ctx context.Context, next *Snapshot) {
	s.mu.Lock()
	s.reloads = slices.Insert(s.reloads, 0, Reload{Generation: next.Generation, Time: next.Changed, Why: next.Why})
	s.reloads = s.reloads[:min(len(s.reloads), maxReloads)]
	s.mu.Unlock()
	if held := s.awaited.Load(); held != nil && held.came(next, s.cfg.NetworkPlugin) {
		s.awaited.CompareAndSwap(held, nil)
	}
	s.settle(ctx)
}

// settle notes what is selected now, remembers it, and logs it if that is news.
func (s *Selection) settle(ctx context.Context) {
	network, now, err := s.choose()
	reason, told := "", ""
	if err == nil {
		reason = now.selectReason(s.cfg.NetworkPlugin)
		told = network.String() + ": " + reason
	}
	s.mu.Lock()
	before := s.told
	s.told = told
	if err == nil {
		s.remember(ctx, now, network)
	} else if s.ready {
		s.since = time.Now()
	}
	s.ready = err == nil
	s.mu.Unlock()
	switch {
	case err != nil:
		s.cfg.Log.ErrorContext(ctx, "the node's network is not ready: new pods are refused", "networkPlugin", s.cfg.NetworkPlugin, "err", err)
	case told != before:
		s.cfg.Log.InfoContext(ctx, "network selected", "networkPlugin", s.cfg.NetworkPlugin, "network", network.String(), "reason", reason,
			"change", now.Why)
		if network.NeedsPodCIDR && !s.cfg.PodCIDRKnown() {
			s.cfg.Log.WarnContext(ctx, "the network needs the node's pod CIDR, which is not known yet: new pods are refused until UpdateRuntimeConfig tells it", "network", network.Name)
		}
	}
}

// selectReason says why Select returns its network; empty if it returns none.
func (s *Snapshot) selectReason(networkPlugin string) string {
	network, err := s.Select(networkPlugin)
	if err != nil {
		return ""
	}
	why := "its name is the value of --network-plugin"
	switch {
	case networkPlugin == PluginCNI:
		why = "the first usable network in " + s.Dir
	case network.Name != networkPlugin:
		why = "the first network that begins with a plugin of type " + networkPlugin + "; none has that name"
	}
	if network.Stale != "" {
		why += "; the last good version of its file is used"
	}
	return why
}
