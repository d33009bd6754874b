package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sync/errgroup"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/dhcpd"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/runtime"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/journal"
)

// newChain makes the CNI network plugin and the keeper of its dhcp daemons. Both
// are told when another network is selected.
func (d *daemon) newChain(cidrs *runtime.PodCIDRs) *cni.Plugin {
	o := d.options
	d.dhcp = dhcpd.New(dhcpd.Config{
		Log: d.log, RunDir: o.RunDir,
		Find: func() (string, error) { return cni.FindPlugin("dhcp", o.CNIBinDirs) },
		Selected: func() []string {
			network, err := d.networks.selected()
			if err != nil {
				return nil
			}
			return dhcpd.Sockets(network.ConfList)
		},
		InUse: d.dhcpInUse, Started: d.renewLeases,
	})
	d.chain = cni.New(cni.Config{
		BinDirs: o.CNIBinDirs, CacheDir: o.CNICacheDir, Timeout: o.CNITimeout, StatusGrace: o.CNIStatusGrace,
		MaxChains: o.CNIMaxChains,
		Selected:  d.networks.selected, PodCIDRs: cidrs.Get,
		Ready:  func(n *config.Network) error { return d.dhcp.Ready(n.ConfList) },
		Runner: d.exec, Log: d.log,
	})
	d.networks.onChange = func() {
		d.chain.SelectionChanged()
		d.dhcp.SelectionChanged()
	}
	return d.chain
}

// serveChain runs what goes on beside the pods: STATUS and dhcp daemons.
func (d *daemon) serveChain(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error { d.dhcp.Run(ctx); return nil })
	if !d.options.Noop() {
		group.Go(func() error { d.chain.RunStatus(ctx); return nil })
	}
}

// dhcpInUse returns the sockets of the dhcp daemons that pods have leases from,
// or that a DEL that is still to be made goes to.
func (d *daemon) dhcpInUse() ([]string, error) {
	records, err := d.journal.All()
	if err != nil {
		return nil, err
	}
	var sockets []string
	for _, r := range records {
		sockets = append(sockets, dhcpd.Sockets(r.Attachment.ConfList)...)
	}
	slices.Sort(sockets)
	return slices.Compact(sockets), nil
}

// renewLeases lets a dhcp daemon that was started anew take up the leases of the
// pods that run: the plugin asks for the lease when it is told to CHECK.
func (d *daemon) renewLeases(ctx context.Context, socket string) {
	records, err := d.journal.All()
	if err != nil {
		d.log.Error("the dhcp leases of running pods are not renewed", "err", err)
		return
	}
	for _, r := range records {
		if ctx.Err() != nil {
			return
		}
		if r.State != journal.Attached || r.BootID != d.manager.BootID || !slices.Contains(dhcpd.Sockets(r.Attachment.ConfList), socket) {
			continue
		}
		log := d.log.With("pod", r.Pod, "sandbox", r.Attachment.ContainerID)
		err := d.manager.Check(ctx, &cnihook.Call{ContainerID: r.Attachment.ContainerID, IfName: r.Attachment.IfName})
		var said *types.Error
		switch {
		case err == nil:
			log.Info("the pod's dhcp lease is taken up again")
		case errors.As(err, &said) && said.Code == types.ErrUnknownContainer:
			log.Debug("the pod was removed before its dhcp lease was taken up again")
		default:
			log.Error("the pod's dhcp lease may not be renewed; its address is not safe", "err", err)
		}
	}
}

// describeChain adds what the network plugin knows to what crinetctl status
// shows.
func (d *daemon) describeChain(status *admin.Status) {
	if report := d.chain.StatusReport(); report.Network != "" {
		status.NetworkStatus = "good"
		if report.Err != nil {
			status.NetworkStatus = fmt.Sprintf("fails since %s: %v", report.FailingSince.Format(time.RFC3339), report.Err)
		}
	}
	for _, daemon := range d.dhcp.Daemons() {
		status.DHCPDaemons = append(status.DHCPDaemons, admin.DHCPDaemon(daemon))
	}
}
