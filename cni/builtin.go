package cni

import (
	"encoding/json"
	"fmt"
	"net/netip"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

// Builtin is a plugin of an attachment's chain that crinetd runs itself, in the
// place of its binary. It is chosen before ADD. DEL and CHECK of the attachment
// use what was chosen, whatever the bin dirs and the flags say by then.
type Builtin struct {
	// Type is the plugin's type. A type that is in the list twice is never built
	// in, so that the type says which plugin of the list is meant.
	Type string `json:"type"`
	// Delegate is the configuration that a plugin which only delegates, such as
	// flannel, hands to another one; empty for all others. It has neither
	// prevResult nor runtimeConfig.
	Delegate json.RawMessage `json:"delegate,omitempty"`
}

// builtin returns the built-in that runs in the place of the plugin type, or nil
// if its binary is executed.
func (a *Attachment) builtin(typ string) *Builtin {
	for i := range a.Builtin {
		if a.Builtin[i].Type == typ {
			return &a.Builtin[i]
		}
	}
	return nil
}

// Masquerade returns the sandbox's addresses, each with the length of its subnet,
// whose connections that leave the subnet must get an address of the node: those
// of an attachment with a built-in plugin whose ipMasq is true. The built-ins
// leave that to the caller, where the plugins' binaries add iptables rules for
// each pod: one set serves all pods. It returns none before ADD and for plugins
// that are executed.
func (a *Attachment) Masquerade() ([]netip.Prefix, error) {
	if len(a.Builtin) == 0 || len(a.Result) == 0 {
		return nil, nil
	}
	list, err := a.list()
	if err != nil {
		return nil, err
	}
	for _, plugin := range list.Plugins {
		chosen := a.builtin(plugin.Network.Type)
		if chosen == nil {
			continue
		}
		masquerades, err := ipMasq(chosen.Delegate, plugin.Bytes)
		if err != nil {
			return nil, fmt.Errorf("network %q: ipMasq of plugin %s: %w", a.Network, chosen.Type, err)
		}
		if masquerades {
			return Addresses(a.Result)
		}
	}
	return nil, nil
}

// Addresses returns those addresses that a CNI result of any version gives the
// sandbox, with their prefix lengths. Addresses of interfaces on the node are left
// out.
func Addresses(result json.RawMessage) ([]netip.Prefix, error) {
	parsed, err := create.CreateFromBytes(result)
	if err != nil {
		return nil, fmt.Errorf("stored result: %w", err)
	}
	converted, err := current.GetResult(parsed)
	if err != nil {
		return nil, fmt.Errorf("stored result: %w", err)
	}
	var all []netip.Prefix
	for _, ip := range converted.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(converted.Interfaces) && converted.Interfaces[*i].Sandbox == "" {
			continue
		}
		address, ok := netip.AddrFromSlice(ip.Address.IP)
		if bits, _ := ip.Address.Mask.Size(); ok {
			all = append(all, netip.PrefixFrom(address.Unmap(), bits))
		}
	}
	return all, nil
}
