package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/hostport"
)

// mapsHostPorts says whether crinetd maps hostPorts itself.
func (d *daemon) mapsHostPorts() bool {
	return !d.options.Noop() && d.options.HostPort == config.HostPortManager
}

// newHostPorts makes the hostPorts' manager and its metrics.
func (d *daemon) newHostPorts() error {
	heals := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "crinet_hostport_heals_total",
		Help: "Times that the hostPort table was changed by somebody else and put right.",
	})
	var err error
	d.hostPorts, err = hostport.New(hostport.Config{
		Log: d.log, Conflict: hostport.ConflictMode(d.options.HostPortConflict),
		OnHeal: func(string) { heals.Inc() },
	})
	if err != nil {
		return err
	}
	mappings := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "crinet_hostport_mappings",
		Help: "hostPorts that crinetd maps.",
	}, func() float64 { _, n := d.hostPorts.Count(); return float64(n) })
	return errors.Join(d.registry.Register(heals), d.registry.Register(mappings))
}

// serveHostPorts makes the kernel's table equal to the journal and keeps it so;
// in modes without one it removes what an earlier run left. A node that cannot
// have the table serves all pods but those with hostPorts.
func (d *daemon) serveHostPorts(ctx context.Context, group *errgroup.Group) error {
	if !d.mapsHostPorts() {
		if err := d.hostPorts.Remove(ctx); err != nil {
			d.log.Warn("an earlier run may have left hostPort rules", "err", err)
		}
		return nil
	}
	pods, err := d.manager.MappedPods()
	if err != nil {
		return fmt.Errorf("hostPorts: %w", err)
	}
	if err := d.hostPorts.Sync(ctx, pods); err != nil {
		d.log.Error("hostPorts are not all mapped; pods that need them may be refused", "err", err)
	}
	group.Go(func() error { d.hostPorts.Run(ctx); return nil })
	return nil
}

// hairpin is --hairpin-mode for one pod.
func (d *daemon) hairpin(ctx context.Context, netns, ifName string) error {
	_, err := hostport.SetHairpin(ctx, netns, ifName, 0)
	return err
}
