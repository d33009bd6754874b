package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/crinet-project/crinet/config"
)

// These carry [Attachment.Note], [Attachment.Builtin] and [Attachment.Kept] into libcni's cache, which
// keeps all capability args. No plugin gets them, since none declares such names.
const (
	noteCapability    = "crinet/note"
	builtinCapability = "crinet/builtin"
	keptCapability    = "crinet/kept"
)

// Cached returns the attachments in libcni's cache (--cni-cache-dir), of one
// container or, with an empty id, of all: those whose ADD succeeded and whose DEL
// has not, as ADD had them. It leaves out entries that cannot be read.
func (p *Plugin) Cached(containerID string) ([]Attachment, error) {
	return cached(p.libcni, p.config.CacheDir, containerID)
}

// ForeignCache is the libcni cache of another program, such as containerd, that
// made attachments on this node.
type ForeignCache struct {
	plugin *Plugin
	dir    string
}

// ForeignCache returns the cache in dir.
func (p *Plugin) ForeignCache(dir string) *ForeignCache { return &ForeignCache{p, dir} }

// Cached is [Plugin.Cached] for the other program's attachments, without those to
// crinet's shim and without loopback interfaces. They have their CacheDir set: TearDownPod removes their entries, which that program leaves
// there when somebody else calls the plugins' DEL.
func (c *ForeignCache) Cached(containerID string) ([]Attachment, error) {
	all, err := cached(c.plugin.libcniIn(c.dir), c.dir, containerID)
	var attachments []Attachment
	for _, a := range all {
		if a.Network != config.OwnNetwork && a.IfName != "lo" {
			a.CacheDir = c.dir
			attachments = append(attachments, a)
		}
	}
	return attachments, err
}

// libcniFor returns the libcni that runs an attachment's chain.
func (p *Plugin) libcniFor(a *Attachment) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(p.config.BinDirs, p.config.CacheDir, p.execFor(a))
}

// libcniIn returns a libcni that works with another cache.
func (p *Plugin) libcniIn(cacheDir string) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(p.config.BinDirs, cacheDir, p.exec)
}

func cached(cache *libcni.CNIConfig, dir, containerID string) ([]Attachment, error) {
	entries, err := cache.GetCachedAttachments(containerID)
	if err != nil {
		return nil, fmt.Errorf("read the cache in %s: %w", dir, err)
	}
	var attachments []Attachment
	for _, e := range entries {
		a, err := fromCache(cache, e)
		if err == nil {
			attachments = append(attachments, *a)
		}
	}
	return attachments, nil
}

func fromCache(cache *libcni.CNIConfig, e *libcni.NetworkAttachment) (*Attachment, error) {
	a := &Attachment{
		ContainerID: e.ContainerID, NetNS: e.NetNS, IfName: e.IfName, Args: e.CniArgs,
		Network: e.Network, ConfList: e.Config, CapabilityArgs: make(map[string]json.RawMessage),
	}
	for name, value := range e.CapabilityArgs {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		a.CapabilityArgs[name] = data
	}
	a.Note = a.CapabilityArgs[noteCapability]
	if chosen := a.CapabilityArgs[builtinCapability]; chosen != nil {
		if err := json.Unmarshal(chosen, &a.Builtin); err != nil {
			return nil, err
		}
	}
	if kept := a.CapabilityArgs[keptCapability]; kept != nil {
		if err := json.Unmarshal(kept, &a.Kept); err != nil {
			return nil, err
		}
	}
	delete(a.CapabilityArgs, keptCapability)
	delete(a.CapabilityArgs, noteCapability)
	delete(a.CapabilityArgs, builtinCapability)
	list, err := a.list()
	if err != nil {
		return nil, err
	}
	result, err := cache.GetNetworkListCachedResult(list, a.runtimeConf())
	if err != nil || result == nil {
		return a, nil // DEL does not need it
	}
	a.Result, err = json.Marshal(result)
	return a, err
}

// CollectsGarbage reports whether GC does anything for a network.
func (p *Plugin) CollectsGarbage(confList json.RawMessage) bool {
	list, err := libcni.NetworkConfFromBytes(confList)
	return err == nil && !list.DisableGC && atLeast(list.CNIVersion, "1.1.0")
}

// GC tells the plugins of a network which of its attachments are valid, so that
// they free what they hold for others (CNI spec 1.1.0, section GC). It does
// nothing for a list that is older or switches GC off. Each plugin is told, and
// the errors of all are returned. The caller makes sure that no ADD of the
// network is under way.
func (p *Plugin) GC(ctx context.Context, confList json.RawMessage, valid []types.GCAttachment) error {
	list, err := libcni.NetworkConfFromBytes(confList)
	if err != nil {
		return fmt.Errorf("GC: configuration list: %w", err)
	}
	if list.DisableGC || !atLeast(list.CNIVersion, "1.1.0") {
		return nil
	}
	if valid == nil {
		valid = []types.GCAttachment{} // null would be no list
	}
	ctx, cancel := limited(ctx, p.config.Timeout)
	defer cancel()
	var errs []error
	for _, plugin := range list.Plugins {
		if err := p.gcPlugin(ctx, list, plugin, valid); err != nil {
			errs = append(errs, fmt.Errorf("network %q: GC: plugin %s: %w", list.Name, plugin.Network.Type, err))
		}
	}
	return errors.Join(errs...)
}

func (p *Plugin) gcPlugin(ctx context.Context, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, valid []types.GCAttachment) error {
	conf, err := libcni.InjectConf(plugin, map[string]any{
		"name": list.Name, "cniVersion": list.CNIVersion,
		"cni.dev/valid-attachments": valid,
		// The name in the first text of spec 1.1.0, which some plugins read.
		"cni.dev/attachments": valid,
	})
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return p.exec.runPlugin(ctx, plugin.Network.Type, p.config.BinDirs, conf.Bytes, &invoke.Args{Command: "GC"})
}
