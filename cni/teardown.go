package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/crinet-project/crinet/cni/builtin"
)

// TearDownPod runs DEL over the attachment's chain in reverse, with the
// configuration, capability args and result of its ADD. libcni would take the
// result from its cache, which may be gone, and stop at the first plugin that
// fails; here each plugin gets its DEL, and the errors of all are returned. It
// is idempotent if the plugins are, as the CNI spec asks of them.
func (p *Plugin) TearDownPod(ctx context.Context, a *Attachment) error {
	p.removing.Add(1)
	defer p.removing.Add(-1)
	return p.run(ctx, p.del, p.del.turn(false), a, func(ctx context.Context, list *libcni.NetworkConfigList) error {
		var errs []error
		released := p.releaseLeases(ctx, list, a)
		for i := len(list.Plugins) - 1; i >= 0; i-- {
			errs = append(errs, p.call(ctx, "DEL", list, list.Plugins[i], a))
		}
		if err := errors.Join(append(errs, p.freeBegun(ctx, a))...); err != nil {
			return errors.Join(err, released)
		}
		// The chain's DEL has released the leases if releaseLeases could not.
		return p.uncache(ctx, list, a)
	})
}

// clockSlack is how much earlier than it is a file system may say that a file was made.
const clockSlack = time.Second

// freeBegun frees the addresses that host-local had begun to reserve for the attachment,
// built in or not, when its ADD was cut off: it makes the file of an address first, and
// then writes into it whose that is. Killed between the two it leaves an empty file, which
// no DEL finds; so does a loss of power. An ADD that came to its end left none.
func (p *Plugin) freeBegun(ctx context.Context, a *Attachment) error {
	if a.Begun.IsZero() || len(a.Result) > 0 && a.NetNS != "" {
		return nil
	}
	configs, err := a.HostLocal()
	if err != nil {
		// Not an error of DEL: flanneld's file may be gone for good.
		p.config.Log.Warn("an address that an ADD had begun to reserve when it was cut off may stay, since it cannot be told where its network keeps addresses",
			"sandbox", a.ContainerID, "network", a.Network, "err", err)
		return nil
	}
	var errs []error
	for _, config := range configs {
		errs = append(errs, builtin.FreeBegun(ctx, config, a.Begun.Add(-clockSlack)))
	}
	return errors.Join(errs...)
}

// Forget removes an attachment from the libcni cache that holds it, without
// calling its plugins: it is not among those that Cached returns any more.
func (p *Plugin) Forget(ctx context.Context, a *Attachment) error {
	list, err := a.list()
	if err != nil {
		return err
	}
	return p.uncache(ctx, list, a)
}

// uncache removes libcni's cache entry: DEL of a list without plugins does that
// alone.
func (p *Plugin) uncache(ctx context.Context, list *libcni.NetworkConfigList, a *Attachment) error {
	empty := &libcni.NetworkConfigList{Name: list.Name, CNIVersion: list.CNIVersion}
	cache := p.libcni
	if a.CacheDir != "" {
		cache = p.libcniIn(a.CacheDir)
	}
	return cache.DelNetworkList(ctx, empty, a.runtimeConf())
}

// dhcp is the IPAM plugin whose DEL must run while the interface exists.
const dhcp = "dhcp"

// releaseLeases runs the DEL of the IPAM plugin dhcp before that of the chain.
// Reference plugins call it themselves, but bridge does so after it has removed
// the interface through which the lease is released, so that the server keeps
// each pod's lease until it expires (containernetworking/plugins#791). The second
// call, from the plugin, finds the lease released; DEL is idempotent.
func (p *Plugin) releaseLeases(ctx context.Context, list *libcni.NetworkConfigList, a *Attachment) error {
	if a.NetNS == "" {
		return nil // the interface has gone with it
	}
	var errs []error
	for _, plugin := range list.Plugins {
		if plugin.Network.IPAM.Type == dhcp {
			errs = append(errs, p.callType(ctx, "DEL", dhcp, list, plugin, a))
		}
	}
	return errors.Join(errs...)
}

// call runs one plugin of an attachment's chain with a verb that prints no
// result.
func (p *Plugin) call(ctx context.Context, verb string, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, a *Attachment) error {
	return p.callType(ctx, verb, plugin.Network.Type, list, plugin, a)
}

// callType is call for a plugin that gets another plugin's configuration, as an
// IPAM plugin does.
func (p *Plugin) callType(ctx context.Context, verb, typ string, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, a *Attachment) error {
	stdin, err := stdin(list, plugin, a)
	if err != nil {
		return fmt.Errorf("plugin %s: configuration: %w", typ, err)
	}
	return p.execFor(a).runPlugin(ctx, typ, p.searched(a), stdin, &invoke.Args{
		Command:     verb,
		ContainerID: a.ContainerID,
		NetNS:       a.NetNS,
		PluginArgs:  a.Args,
		IfName:      a.IfName,
	})
}

// stdin returns the configuration that a plugin gets: its own, and what the
// runtime derives (CNI spec, section 3, "Deriving execution configuration").
func stdin(list *libcni.NetworkConfigList, plugin *libcni.PluginConfig, a *Attachment) ([]byte, error) {
	inject := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	prev, err := a.prevResult(list.CNIVersion)
	if err != nil {
		return nil, err
	}
	if prev != nil {
		inject["prevResult"] = prev
	}
	args := make(map[string]json.RawMessage)
	for name, declared := range plugin.Network.Capabilities {
		if value, given := a.CapabilityArgs[name]; declared && given {
			args[name] = value
		}
	}
	if len(args) > 0 {
		inject["runtimeConfig"] = args
	}
	conf, err := libcni.InjectConf(plugin, inject)
	if err != nil {
		return nil, err
	}
	return conf.Bytes, nil
}
