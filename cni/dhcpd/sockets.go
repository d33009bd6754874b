package dhcpd

import (
	"encoding/json"
	"slices"
)

const (
	// pluginType is the IPAM plugin's type, and its binary's name.
	pluginType = "dhcp"
	// defaultSocket is where the plugin looks for its daemon unless ipam says
	// daemonSocketPath.
	defaultSocket = "/run/cni/dhcp.sock"
)

// Sockets returns where the plugins of a CNI configuration list look for a dhcp
// daemon: none, or as a rule one.
func Sockets(confList []byte) []string {
	var list struct {
		Plugins []struct {
			IPAM struct {
				Type   string `json:"type"`
				Socket string `json:"daemonSocketPath"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	// A list that is none has been refused before it comes here. One whose
	// ipam has another form is no dhcp's.
	if json.Unmarshal(confList, &list) != nil {
		return nil
	}
	var sockets []string
	for _, p := range list.Plugins {
		if p.IPAM.Type != pluginType {
			continue
		}
		socket := p.IPAM.Socket
		if socket == "" {
			socket = defaultSocket
		}
		if !slices.Contains(sockets, socket) {
			sockets = append(sockets, socket)
		}
	}
	return sockets
}
