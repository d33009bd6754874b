package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
)

// noteCapability carries [Attachment.Note] into libcni's cache, which keeps all
// capability args. No plugin can declare the name, so that none gets it.
const noteCapability = "crinet/note"

// Cached returns the attachments that libcni's cache holds (--cni-cache-dir):
// those whose ADD succeeded and whose DEL has not. What cannot be read there is
// left out. They are as ADD had them.
func (p *Plugin) Cached() ([]Attachment, error) {
	entries, err := p.libcni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("read the cache in %s: %w", p.config.CacheDir, err)
	}
	var attachments []Attachment
	for _, e := range entries {
		a, err := p.fromCache(e)
		if err == nil {
			attachments = append(attachments, *a)
		}
	}
	return attachments, nil
}

func (p *Plugin) fromCache(e *libcni.NetworkAttachment) (*Attachment, error) {
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
	delete(a.CapabilityArgs, noteCapability)
	list, err := a.list()
	if err != nil {
		return nil, err
	}
	result, err := p.libcni.GetNetworkListCachedResult(list, a.runtimeConf())
	if err != nil || result == nil {
		return a, nil // DEL does without
	}
	a.Result, err = json.Marshal(result)
	return a, err
}

// GC tells the plugins of a network which of its attachments are valid (CNI
// spec 1.1.0, section GC); what else they hold for it they free. Lists that are
// older or switch GC off have nothing to be told. Each plugin is told, and the
// errors of all are returned. The caller sees to it that no ADD of the network
// is under way.
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
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
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
	path, err := p.exec.FindInPath(plugin.Network.Type, p.config.BinDirs)
	if err != nil {
		return err
	}
	conf, err := libcni.InjectConf(plugin, map[string]any{
		"name": list.Name, "cniVersion": list.CNIVersion,
		"cni.dev/valid-attachments": valid,
		// The name in the first text of spec 1.1.0, which some plugins read.
		"cni.dev/attachments": valid,
	})
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, &invoke.Args{
		Command: "GC", Path: strings.Join(p.config.BinDirs, ":"),
	}, p.exec)
}
