package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"

	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/config"
)

// BuiltinRunner runs built-in plugins; [builtin.Plugins] is one.
type BuiltinRunner interface {
	Execute(ctx context.Context, call *builtin.Call) ([]byte, error)
}

// How says how crinetd runs a plugin of a network for new attachments.
type How struct {
	Type    string
	Builtin bool   // inside crinetd; otherwise its binary is executed
	Why     string // why it is not built in
}

// builtinPath begins the path that stands for a plugin without a binary.
const builtinPath = "builtin:"

// How says how the plugins of a network are run, in the order of ADD.
func (p *Plugin) How(network *config.Network) []How {
	_, how := p.choose(network)
	return how
}

// choose decides for each plugin of a network whether crinetd runs it itself.
func (p *Plugin) choose(network *config.Network) (chosen []Builtin, how []How) {
	list, err := libcni.NetworkConfFromBytes(network.ConfList)
	if err != nil {
		return nil, nil // its chain is not run either
	}
	times := make(map[string]int)
	for _, plugin := range list.Plugins {
		times[plugin.Network.Type]++
	}
	for _, plugin := range list.Plugins {
		typ := plugin.Network.Type
		b, err := p.chooseOne(network, list, plugin)
		if err == nil && times[typ] > 1 {
			err = errors.New("the list has it twice")
		}
		if err != nil {
			how = append(how, How{Type: typ, Why: err.Error()})
			continue
		}
		chosen, how = append(chosen, *b), append(how, How{Type: typ, Builtin: true})
	}
	return chosen, how
}

// chooseOne returns the built-in for a plugin, or why its binary is executed.
func (p *Plugin) chooseOne(network *config.Network, list *libcni.NetworkConfigList, plugin *libcni.PluginConfig) (*Builtin, error) {
	typ := plugin.Network.Type
	switch {
	case !slices.Contains(builtin.Types(), typ):
		return nil, errors.New("crinetd has no such plugin")
	case p.config.Builtin == nil || len(p.config.BuiltinTypes) == 0:
		return nil, errors.New("--builtin-plugins is off")
	}
	conf, err := libcni.InjectConf(plugin, map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
	if err != nil {
		return nil, err
	}
	parts, delegate, err := builtin.Known(typ, conf.Bytes)
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		if !slices.Contains(p.config.BuiltinTypes, part) {
			return nil, fmt.Errorf("--builtin-plugins leaves %s out", part)
		}
		if err := builtin.Reference(part, network.About[part]); err != nil {
			return nil, err
		}
	}
	if p.config.CanMasquerade != nil {
		masquerades, err := ipMasq(delegate, conf.Bytes)
		if err == nil && masquerades {
			err = p.config.CanMasquerade()
		}
		if err != nil {
			return nil, fmt.Errorf("ipMasq is left to the plugin: %w", err)
		}
	}
	return &Builtin{Type: typ, Delegate: delegate}, nil
}

// ipMasq says whether a plugin masquerades: one that delegates if its delegate does.
func ipMasq(delegate, conf []byte) (bool, error) {
	if delegate != nil {
		conf = delegate
	}
	var said struct {
		IPMasq bool `json:"ipMasq"`
	}
	err := json.Unmarshal(conf, &said)
	return said.IPMasq, err
}

// execFor returns what runs an attachment's plugins.
func (p *Plugin) execFor(a *Attachment) *execAdapter {
	adapter := *p.exec
	adapter.builtin, adapter.attachment = p.config.Builtin, a
	return &adapter
}

// runBuiltin runs a plugin that the attachment has built in.
func (e *execAdapter) runBuiltin(ctx context.Context, typ string, stdin []byte, environ []string) ([]byte, error) {
	if e.builtin == nil {
		return nil, wire.Errorf(wire.CodeInternal, "plugin %s was built in, and this crinetd has no built-in plugins", typ)
	}
	call := &builtin.Call{
		Type: typ, Command: valueOf(environ, "CNI_COMMAND"), ContainerID: valueOf(environ, "CNI_CONTAINERID"),
		NetNS: valueOf(environ, "CNI_NETNS"), IfName: valueOf(environ, "CNI_IFNAME"), Args: valueOf(environ, "CNI_ARGS"), Config: stdin,
	}
	if delegate := e.attachment.builtin(typ).Delegate; delegate != nil {
		var err error
		if call.Delegate, err = withRuntimeParts(delegate, stdin); err != nil {
			return nil, fmt.Errorf("plugin %s: stored configuration of its delegate: %w", typ, err)
		}
	}
	ctx, _, ended := e.begin(ctx, Run{Type: typ, Command: call.Command, Builtin: true, Env: cniVariables(environ), Stdin: stdin})
	stdout, err := e.builtin.Execute(ctx, call)
	ended(stdout, nil, err)
	return stdout, err
}

// withRuntimeParts gives a delegate's configuration what the runtime derives for the
// plugin that delegates.
func withRuntimeParts(delegate, stdin []byte) ([]byte, error) {
	var given, conf map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(stdin, &given), json.Unmarshal(delegate, &conf)); err != nil {
		return nil, err
	}
	for _, key := range []string{"runtimeConfig", "prevResult"} {
		if value, ok := given[key]; ok {
			conf[key] = value
		}
	}
	return json.Marshal(conf)
}
