package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/probe"
	"github.com/crinet-project/crinet/runtime/admin"
)

// networks are the networks of the conf dir and which of them is selected.
// Under noop nothing is probed or watched.
type networks struct {
	options  *config.Options
	log      *slog.Logger
	podCIDRs func() []netip.Prefix
	watcher  *config.Watcher
	// onChange is called after each change of the networks. It is set before
	// run.
	onChange func()

	mu      sync.Mutex
	told    string         // what was logged last of the selection
	reloads []admin.Reload // the last ones, the latest first
}

// maxReloads is how many changes crinetctl status shows.
const maxReloads = 10

// errNoop is why no network is selected under noop.
var errNoop = errors.New("--network-plugin names none, so that the noop plugin is selected")

// newNetworks scans the directories for the first time.
func newNetworks(ctx context.Context, o *config.Options, log *slog.Logger, podCIDRs func() []netip.Prefix) (*networks, error) {
	n := &networks{options: o, log: log, podCIDRs: podCIDRs}
	if o.Noop() {
		return n, nil
	}
	var err error
	n.watcher, err = config.NewWatcher(ctx, config.WatcherConfig{
		ConfDir: o.CNIConfDir, Prober: probe.New(o.CNIBinDirs, probe.Config{}), MTU: o.NetworkPluginMTU,
		Log: log, OnChange: n.changed,
	})
	if err != nil {
		return nil, fmt.Errorf("read the CNI configuration: %w", err)
	}
	n.changed(n.watcher.Snapshot())
	return n, nil
}

// run follows the directories until ctx ends.
func (n *networks) run(ctx context.Context) error {
	if n.watcher == nil {
		return nil
	}
	return n.watcher.Run(ctx)
}

// selected is the network that new pods get, from memory.
func (n *networks) selected() (*config.Network, error) {
	if n.watcher == nil {
		return nil, errNoop
	}
	return n.watcher.Snapshot().Select(n.options.NetworkPlugin)
}

// changed keeps and logs what a new snapshot means for new pods.
func (n *networks) changed(s *config.Snapshot) {
	network, err := s.Select(n.options.NetworkPlugin)
	told, why := "", ""
	if err == nil {
		why = n.reason(s, network)
		told = network.String() + ": " + why
	}
	n.mu.Lock()
	before := n.told
	n.told = told
	n.reloads = slices.Insert(n.reloads, 0, admin.Reload{Generation: s.Generation, Time: s.Changed, Why: s.Why})
	n.reloads = n.reloads[:min(len(n.reloads), maxReloads)]
	n.mu.Unlock()
	switch {
	case err != nil:
		n.log.Error("the node's network is not ready: new pods are refused", "networkPlugin", n.options.NetworkPlugin, "err", err)
	case told != before:
		n.log.Info("network selected", "networkPlugin", n.options.NetworkPlugin, "network", network.String(), "reason", why, "change", s.Why)
		if network.NeedsPodCIDR && len(n.podCIDRs()) == 0 {
			n.log.Warn("the network needs the node's pod CIDR, which is not known yet: new pods are refused until UpdateRuntimeConfig tells it", "network", network.Name)
		}
	}
	if n.onChange != nil {
		n.onChange()
	}
}

// reason says why a network is the selected one.
func (n *networks) reason(s *config.Snapshot, network *config.Network) string {
	why := "it is named as --network-plugin has it"
	switch plugin := n.options.NetworkPlugin; {
	case plugin == config.PluginCNI:
		why = "the first usable network in " + s.Dir
	case network.Name != plugin:
		why = "the first network that begins with a plugin of type " + plugin + "; none has that name"
	}
	if network.Stale != "" {
		why += "; of its file the last good version is used"
	}
	return why
}

// describe adds the networks to what crinetctl status shows.
func (n *networks) describe(status *admin.Status) {
	if n.watcher == nil {
		return
	}
	s := n.watcher.Snapshot()
	if network, err := s.Select(n.options.NetworkPlugin); err == nil {
		status.Network, status.NetworkFile = network.Name, network.File
		status.Selected = n.reason(s, network)
	}
	stats := n.watcher.Stats()
	status.Watch = &admin.Watch{
		Scans: stats.Scans, Probes: stats.Probes, Rearms: stats.Rearms, LastScan: stats.LastScan, Error: stats.WatchError,
	}
	n.mu.Lock()
	status.Reloads = slices.Clone(n.reloads)
	n.mu.Unlock()
	for _, network := range s.Networks {
		view := admin.Network{Name: network.Name, File: network.File, CNIVersion: network.CNIVersion, Stale: network.Stale}
		for _, p := range network.Plugins {
			view.Plugins = append(view.Plugins, p.Type)
		}
		status.Networks = append(status.Networks, view)
	}
	for _, p := range s.Problems {
		status.Problems = append(status.Problems, admin.Problem{File: p.File, Line: p.Line, Col: p.Col, Kind: string(p.Kind), Reason: p.Reason})
	}
	for _, p := range s.Plugins.All() {
		if !p.Usable() && p.Name != probe.ShimType {
			status.Problems = append(status.Problems, admin.Problem{File: p.Path, Reason: p.Reason})
		}
	}
}

// maxNotice bounds notice, which becomes a Kubernetes condition's message.
const maxNotice = 1024

// notice says which network is selected and why, and names the files of the conf
// dir that are not used as they are.
func (n *networks) notice() string {
	if n.watcher == nil {
		return ""
	}
	s := n.watcher.Snapshot()
	var b strings.Builder
	if network, err := s.Select(n.options.NetworkPlugin); err == nil {
		fmt.Fprintf(&b, "network %s (%s): %s", network.Name, filepath.Base(network.File), n.reason(s, network))
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "; %v", p)
	}
	if b.Len() > maxNotice {
		return strings.ToValidUTF8(b.String()[:maxNotice], "") + "…"
	}
	return strings.TrimPrefix(b.String(), "; ")
}

// plugins are what the bin dirs hold.
func (n *networks) plugins() admin.Plugins {
	all := admin.Plugins{Dirs: []admin.BinDir{}, Plugins: []admin.Plugin{}}
	if n.watcher == nil {
		return all
	}
	found := n.watcher.Snapshot().Plugins
	for _, dir := range found.Dirs() {
		all.Dirs = append(all.Dirs, admin.BinDir(dir))
	}
	for _, p := range found.All() {
		all.Plugins = append(all.Plugins, admin.Plugin{
			Name: p.Name, Path: p.Path, Versions: p.Versions, Reason: p.Reason, Shadowed: p.Shadowed,
		})
	}
	return all
}
