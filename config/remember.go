package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/crinet-project/crinet/internal/dirs"
)

// maxRemembered is the maximum length of the file in bytes.
const maxRemembered = 1 << 16

// remembered is the network that was selected last, as a file keeps it over restarts
// and reboots. It counts for the flag and the conf dir that it was selected with.
type remembered struct {
	ConfDir       string `json:"confDir"`
	NetworkPlugin string `json:"networkPlugin"` // the flag
	Network       string `json:"network"`
	BootID        string `json:"bootID"`
}

// awaited is a network that was selected before the reboot and that has not come yet.
// Until then, for the time of --network-wait at most, new pods get no other one.
type awaited struct {
	network string
	until   time.Time
}

// came says whether nobody needs to wait any more: the network is there, so that the
// order of the files and the flag decide as ever, or the one that is selected has the
// very name that the flag asks for.
func (a *awaited) came(now *Snapshot, networkPlugin string) bool {
	if now.has(a.network) {
		return true
	}
	network, err := now.Select(networkPlugin)
	return err == nil && network.Name == networkPlugin
}

// has says whether a network is usable.
func (s *Snapshot) has(name string) bool {
	for _, n := range s.Networks {
		if n.Name == name {
			return true
		}
	}
	return false
}

// recall reads which network was selected last, and begins to wait for it if that was
// before the reboot. A change of the configuration in the same boot was made by
// somebody, and counts at once.
func (s *Selection) recall() {
	if s.cfg.File == "" || s.cfg.Snapshot == nil {
		return
	}
	dirs.RemoveUnfinished(s.cfg.File)
	var last remembered
	data, err := dirs.ReadFile(s.cfg.File, maxRemembered)
	if err == nil {
		err = json.Unmarshal(data, &last)
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.cfg.Log.Warn("which network pods had before cannot be read; the first usable one is taken", "file", s.cfg.File, "err", err)
		}
		return
	}
	s.settled = last.BootID == s.cfg.BootID
	if last.NetworkPlugin != s.cfg.NetworkPlugin || last.ConfDir != s.cfg.Snapshot().Dir || last.Network == "" {
		return
	}
	s.last = last
	if last.BootID != s.cfg.BootID && s.cfg.Wait > 0 {
		s.awaited.Store(&awaited{network: last.Network, until: s.since.Add(s.cfg.Wait)})
	}
}

// remember keeps which network is selected. The caller holds the lock.
func (s *Selection) remember(ctx context.Context, now *Snapshot, network *Network) {
	next := remembered{ConfDir: now.Dir, NetworkPlugin: s.cfg.NetworkPlugin, Network: network.Name, BootID: s.cfg.BootID}
	if s.cfg.File == "" || next == s.last {
		return
	}
	data, err := json.Marshal(next)
	if err == nil {
		err = dirs.WriteFile(s.cfg.File, data, 0o600)
	}
	if err != nil {
		s.cfg.Log.WarnContext(ctx, "which network pods have cannot be kept: after a reboot another one may be taken that comes earlier", "network", network.Name, "err", err)
		return
	}
	s.last = next
}

// Settled reports whether an earlier crinetd has selected a network in this boot.
func (s *Selection) Settled() bool { return s.settled }

// Run waits for the network of before the reboot. When it has not come in time, Run
// says so, and the others count. It returns then, or when ctx ends.
func (s *Selection) Run(ctx context.Context, changed func()) {
	held := s.awaited.Load()
	if held == nil {
		return
	}
	timer := time.NewTimer(time.Until(held.until))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	s.mu.Lock()
	late := s.awaited.CompareAndSwap(held, nil)
	if late {
		s.late = held.network
	}
	s.mu.Unlock()
	if !late {
		return
	}
	s.cfg.Log.WarnContext(ctx, "the network that pods had before the reboot has not come; from now on the first usable one is taken",
		"network", held.network, "wait", s.cfg.Wait)
	s.settle(ctx)
	changed()
}

// Wanted is the name of the network that new pods get, or will get when it has come;
// empty if nobody knows.
func (s *Selection) Wanted() string {
	if network, err := s.Selected(); err == nil {
		return network.Name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.Network
}

// Waiting says what new pods wait for, and since when; empty if there is a network for
// them.
func (s *Selection) Waiting() (what string, since time.Time) {
	if s.cfg.Snapshot == nil {
		return "", time.Time{}
	}
	if _, err := s.Selected(); err == nil {
		return "", time.Time{}
	}
	now := s.cfg.Snapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.what(now), s.since
}

// what says what new pods wait for. The caller holds the lock.
func (s *Selection) what(now *Snapshot) string {
	name := s.cfg.NetworkPlugin
	if name == PluginCNI || s.awaited.Load() != nil {
		name = s.last.Network
	}
	for _, p := range now.Problems {
		waits := now.waits[p.File]
		if p.Kind != ProblemUnusable || waits == "" || name != "" && p.Network != name {
			continue
		}
		return clip(waits, maxReason)
	}
	if name == "" {
		return "a usable CNI configuration in " + now.Dir
	}
	for _, p := range now.Problems {
		if p.Network == name {
			return fmt.Sprintf("network %s (%s) to be usable", clip(name, maxReason), filepath.Base(p.File))
		}
	}
	return fmt.Sprintf("network %s in %s", clip(name, maxReason), now.Dir)
}

// refusal is why new pods get no network: what they wait for, since when, and what
// there is, in at most 1 KiB.
func (s *Selection) refusal(now *Snapshot, held *awaited, err error) error {
	s.mu.Lock()
	what, since := s.what(now), s.since
	s.mu.Unlock()
	text := fmt.Sprintf("waiting for %s since %s", what, since.Format(time.TimeOnly))
	if held != nil {
		text += fmt.Sprintf(", the network of this node's pods before the reboot is %s: until %s (--network-wait) no other one is taken",
			clip(held.network, maxReason), held.until.Format(time.TimeOnly))
	}
	if err != nil {
		text += "; " + err.Error()
	}
	return errors.New(clip(text, maxSelectError))
}
