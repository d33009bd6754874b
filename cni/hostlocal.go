package cni

import (
	"encoding/json"
	"fmt"

	"github.com/crinet-project/crinet/cni/builtin"
)

// HostLocal returns the configurations, each a whole plugin's, with which the
// attachment's plugins call the IPAM plugin host-local: with the name of the network
// and the capability args, and for flannel as its delegate is told. It returns none
// for a network whose addresses come from elsewhere. It reads flanneld's file where
// the attachment does not have what was in it.
func (a *Attachment) HostLocal() ([]json.RawMessage, error) {
	list, err := a.list()
	if err != nil {
		return nil, err
	}
	bare := *a
	bare.Result = nil // not part of what host-local is told
	var all []json.RawMessage
	for _, plugin := range list.Plugins {
		conf, err := stdin(list, plugin, &bare)
		if err == nil && plugin.Network.Type == builtin.Flannel {
			conf, err = a.flannelDelegate(conf)
		}
		if err != nil {
			return nil, fmt.Errorf("network %q: plugin %s: %w", a.Network, plugin.Network.Type, err)
		}
		var said struct {
			IPAM struct {
				Type string `json:"type"`
			} `json:"ipam"`
		}
		if err := json.Unmarshal(conf, &said); err != nil {
			return nil, fmt.Errorf("network %q: plugin %s: ipam: %w", a.Network, plugin.Network.Type, err)
		}
		if said.IPAM.Type == builtin.HostLocal {
			all = append(all, conf)
		}
	}
	return all, nil
}

// flannelDelegate returns what flannel's delegate is told.
func (a *Attachment) flannelDelegate(conf []byte) ([]byte, error) {
	if chosen := a.builtin(builtin.Flannel); chosen != nil && chosen.Delegate != nil {
		return withRuntimeParts(chosen.Delegate, conf)
	}
	delegate, err := builtin.FlannelDelegate(conf)
	if err != nil {
		return nil, err
	}
	return withRuntimeParts(delegate, conf)
}
