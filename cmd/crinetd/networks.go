package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/probe"
	"github.com/crinet-project/crinet/runtime/admin"
)

// networks are the networks of the conf dir and which of them is selected.
// Under noop nothing is probed or watched.
type networks struct {
	options *config.Options
	log     *slog.Logger
	watcher *config.Watcher

	mu   sync.Mutex
	told string // what was logged last of the selection
}

// errNoop is why no network is selected under noop.
var errNoop = errors.New("--network-plugin names none, so that the noop plugin is selected")

// newNetworks scans the directories for the first time.
func newNetworks(ctx context.Context, o *config.Options, log *slog.Logger) (*networks, error) {
	n := &networks{options: o, log: log}
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

// changed logs what a new snapshot means for new pods.
func (n *networks) changed(s *config.Snapshot) {
	network, err := s.Select(n.options.NetworkPlugin)
	told := ""
	if err == nil {
		told = network.String()
	}
	n.mu.Lock()
	before := n.told
	n.told = told
	n.mu.Unlock()
	switch {
	case err != nil:
		n.log.Error("the node's network is not ready: new pods are refused", "networkPlugin", n.options.NetworkPlugin, "err", err)
	case told != before:
		n.log.Info("network selected", "networkPlugin", n.options.NetworkPlugin, "network", told, "why", s.Why)
	}
}

// describe adds the networks to what crinetctl status shows.
func (n *networks) describe(status *admin.Status) {
	if n.watcher == nil {
		return
	}
	s := n.watcher.Snapshot()
	if network, err := s.Select(n.options.NetworkPlugin); err == nil {
		status.Network, status.NetworkFile = network.Name, network.File
	}
	for _, network := range s.Networks {
		view := admin.Network{Name: network.Name, File: network.File, CNIVersion: network.CNIVersion, Stale: network.Stale}
		for _, p := range network.Plugins {
			view.Plugins = append(view.Plugins, p.Type)
		}
		status.Networks = append(status.Networks, view)
	}
	for _, p := range s.Problems {
		status.Problems = append(status.Problems, admin.Problem{File: p.File, Reason: p.Reason})
	}
	for _, p := range s.Plugins.All() {
		if !p.Usable() {
			status.Problems = append(status.Problems, admin.Problem{File: p.Path, Reason: p.Reason})
		}
	}
}
