package dhcpd

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/wire"
)

// Attachment is one attachment of a pod.
type Attachment struct {
	*cni.Attachment
	Pod string // namespace/name
	Up  bool   // attached, in this boot of the node; else it is still to be removed
}

// Attachments is what the journal knows of the pods, and the engine's CHECK.
type Attachments interface {
	// Attachments returns all attachments, those that are still to be removed
	// included. It may take its time.
	Attachments() ([]Attachment, error)
	// Check runs CHECK over an attachment's chain. Its error is a [wire.Error]
	// with CodeUnknownContainer if the attachment has been removed meanwhile.
	Check(context.Context, Attachment) error
}

// errNoCheck is why the leases of a chain without CHECK are not renewed.
var errNoCheck = errors.New("its network has no CHECK, which takes leases up again: cniVersion is below 0.4.0, or disableCheck is set; restart the pod")

// renew has a daemon that has no leases take up those of the pods that run: the
// plugin asks the daemon for the lease when it runs CHECK.
func (m *Manager) renew(ctx context.Context, socket string) {
	all, err := m.config.Attachments.Attachments()
	if err != nil {
		m.config.Log.Error("the dhcp leases of running pods are not renewed", "err", err)
		return
	}
	for _, a := range all {
		if !a.Up || !slices.Contains(Sockets(a.ConfList), socket) || ctx.Err() != nil {
			continue
		}
		has, err := a.HasCheck()
		switch {
		case err == nil && !has:
			err = errNoCheck
		case err == nil:
			err = m.config.Attachments.Check(ctx, a)
		}
		log := m.config.Log.With("socket", socket, "pod", a.Pod, "sandbox", a.ContainerID)
		var said *wire.Error
		switch {
		case err == nil:
			log.Info("the pod's dhcp lease is taken up again")
		case errors.As(err, &said) && said.Code == wire.CodeUnknownContainer:
			log.Debug("the pod was removed before its dhcp lease was taken up again")
		default:
			log.Error("the pod's dhcp lease is not renewed: when it expires, another host may get the pod's address", "err", err)
		}
	}
}

const (
	// pluginType is the IPAM plugin's type, and its binary's name.
	pluginType = "dhcp"
	// defaultSocket is where the plugin looks for its daemon if ipam has no
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
	// A list that is malformed has been refused before. An ipam of another form
	// is not that of the reference plugins.
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
