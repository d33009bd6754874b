package report

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Register registers the metrics of the configuration, of the selected network's
// STATUS and of the dhcp daemons.
func (s *Source) Register(reg prometheus.Registerer) error {
	counter := func(name, help string, value func() uint64) error {
		return reg.Register(prometheus.NewCounterFunc(
			prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value()) }))
	}
	gauge := func(name, help string, value func() float64) error {
		return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	errs := []error{
		reg.Register(newAttachments(s.Engine.Records)),
		counter("crinet_operations_lost_total", "Operations that could not be kept for crinetctl why, or only their begin.", s.Recorder.Lost),
		counter("crinet_dhcp_daemon_starts_total", "Times that crinetd has started a daemon of the IPAM plugin dhcp.", func() (n uint64) {
			for _, daemon := range s.DHCP.Daemons() {
				n += daemon.Starts
			}
			return n
		}),
		counter("crinet_add_retries_total", "ADDs that were undone and tried again in place, since their error passes.", func() uint64 {
			_, retries := s.Chain.Pressure()
			return retries
		}),
		gauge("crinet_add_waiting", "Pods whose ADD waits for its turn.", func() float64 {
			load, _ := s.Chain.Pressure()
			return float64(load.Waiting)
		}),
		gauge("crinet_add_limit", "ADDs that may run at once: --cni-max-chains, and fewer while the plugins are busy; 0 is no limit.", func() float64 {
			load, _ := s.Chain.Pressure()
			return float64(load.Limit)
		}),
		gauge("crinet_runtime_silent_seconds", "How long the container runtime has not answered the newest question for its Status; 0 if it has.",
			func() float64 { return s.Runtime.Last().Silent.Seconds() }),
	}
	if s.HostPorts != nil {
		errs = append(errs,
			gauge("crinet_hostport_available", "1 when hostPorts can be mapped on this node, else 0.", func() float64 {
				if s.HostPorts.Available() != nil {
					return 0
				}
				return 1
			}),
			gauge("crinet_hostport_limited_pods", "Pods whose hostPorts are mapped and do not answer, or not from everywhere; crinetctl pods says why.",
				func() float64 { return float64(len(s.HostPorts.Report().Limited)) }))
	}
	if s.Drift != nil {
		errs = append(errs, s.Drift.Register(reg))
	}
	if s.Headroom != nil {
		errs = append(errs, reg.Register(newAddresses(s.Headroom)))
	}
	if s.Watcher == nil {
		return errors.Join(errs...)
	}
	errs = append(errs, s.registerWaiting(gauge)...)
	return errors.Join(append(errs,
		counter("crinet_network_status_total", "Runs of the selected network's STATUS.", func() uint64 { n, _ := s.Chain.StatusCounts(); return n }),
		counter("crinet_network_status_failed_total", "Runs of the selected network's STATUS that failed.", func() uint64 { _, n := s.Chain.StatusCounts(); return n }),
		counter("crinet_config_scans_total", "Scans of the conf dir.", func() uint64 { return s.Watcher.Stats().Scans }),
		counter("crinet_config_reloads_total", "Scans and probes that changed the networks or plugins.", func() uint64 { return s.Watcher.Stats().Reloads }),
		gauge("crinet_config_problems", "Files of the conf dir that are not used as they are.", func() float64 { return float64(len(s.Watcher.Snapshot().Problems)) }),
		gauge("crinet_config_watch_failed", "1 while changes of the conf dir and the bin dirs are found by polling only, else 0.", func() float64 {
			if s.Watcher.Stats().WatchError != "" {
				return 1
			}
			return 0
		}),
	)...)
}
