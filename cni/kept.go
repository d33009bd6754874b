package cni

import (
	"slices"

	"github.com/crinet-project/crinet/config"
)

// Keeper keeps copies of binaries; [keep.Store] is one.
type Keeper interface {
	// Keep returns by plugin type what names the copies of the binaries at paths.
	Keep(paths []string) map[string]string
	// Dirs returns the folders in which a search finds copies that Keep named.
	Dirs(kept map[string]string) []string
}

// keep keeps the binaries that an attachment to a network may need: of the plugins
// that are executed, of their IPAM plugins and of those that they run themselves, as
// far as they are there.
func (p *Plugin) keep(network *config.Network, a *Attachment) map[string]string {
	if p.config.Keeper == nil {
		return nil
	}
	var paths []string
	for _, plugin := range network.Plugins {
		if a.builtin(plugin.Type) != nil {
			continue
		}
		for _, typ := range append([]string{plugin.Type, plugin.IPAM}, plugin.Delegates...) {
			path, err := FindPlugin(typ, p.config.BinDirs)
			if err == nil && !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	if len(paths) == 0 {
		return nil
	}
	return p.config.Keeper.Keep(paths)
}

// searched are the directories in which the plugins of an attachment are looked up
// (CNI_PATH): the bin dirs, and after them the copies of what its ADD found there.
func (p *Plugin) searched(a *Attachment) []string {
	if p.config.Keeper == nil || len(a.Kept) == 0 {
		return p.config.BinDirs
	}
	return append(slices.Clone(p.config.BinDirs), p.config.Keeper.Dirs(a.Kept)...)
}
