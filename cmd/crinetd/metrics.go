package main

import (
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsHandler serves the metrics.
func metricsHandler(metrics prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(metrics, promhttp.HandlerOpts{})
}

// registerNetworks registers the metrics of the configuration, of the selected
// network's STATUS and of the dhcp daemons, which are read where they are kept.
func (d *daemon) registerNetworks() error {
	counter := func(name, help string, value func() uint64) error {
		return d.registry.Register(prometheus.NewCounterFunc(
			prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value()) }))
	}
	gauge := func(name, help string, value func() float64) error {
		return d.registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	errs := []error{
		counter("crinet_dhcp_daemon_starts_total", "Times that crinetd has started a daemon of the IPAM plugin dhcp.", func() (n uint64) {
			for _, daemon := range d.dhcp.Daemons() {
				n += daemon.Starts
			}
			return n
		}),
	}
	watcher := d.networks.watcher
	if watcher == nil {
		return errors.Join(errs...)
	}
	return errors.Join(append(errs,
		counter("crinet_network_status_total", "Runs of the selected network's STATUS.", func() uint64 { n, _ := d.chain.StatusCounts(); return n }),
		counter("crinet_network_status_failed_total", "Runs of the selected network's STATUS that failed.", func() uint64 { _, n := d.chain.StatusCounts(); return n }),
		counter("crinet_config_scans_total", "Scans of the conf dir.", func() uint64 { return watcher.Stats().Scans }),
		counter("crinet_config_reloads_total", "Scans and probes that changed the networks or plugins.", func() uint64 { return watcher.Stats().Reloads }),
		gauge("crinet_config_problems", "Files of the conf dir that are not used as they are.", func() float64 { return float64(len(watcher.Snapshot().Problems)) }),
		gauge("crinet_config_watch_failed", "1 while changes of the conf dir and the bin dirs are found by polling only, else 0.", func() float64 {
			if watcher.Stats().WatchError != "" {
				return 1
			}
			return 0
		}),
	)...)
}
