package report

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crinet-project/crinet/cni/headroom"
	"github.com/crinet-project/crinet/runtime/admin"
)

// addressRanges are the ranges as crinetctl status shows them.
func addressRanges(ranges []headroom.Range) []admin.AddressRange {
	var all []admin.AddressRange
	for _, r := range ranges {
		view := admin.AddressRange{
			Network: r.Network, Range: r.Range, Selected: r.Selected, Size: r.Size,
			Used: r.Used, Free: r.Free, Leaked: r.Leaked, Reserved: r.Reserved, Problem: r.Problem,
		}
		for _, leak := range r.Leaks {
			view.Leaks = append(view.Leaks, admin.AddressLeak{Address: leak.Address.String(), Container: leak.Container, File: leak.File})
		}
		all = append(all, view)
	}
	return all
}

// addresses is the metric of the ranges, read where they are counted.
type addresses struct {
	ranges func() []headroom.Range
	desc   *prometheus.Desc
}

func newAddresses(ranges func() []headroom.Range) *addresses {
	return &addresses{ranges, prometheus.NewDesc("crinet_ipam_addresses",
		"Addresses of host-local's ranges, by network, range and state (used, free, leaked: held by no sandbox that is known, reserved: given to no pod). "+
			"2^53 stands for more than anybody counts.", []string{"network", "range", "state"}, nil)}
}

// Describe is prometheus.Collector's.
func (a *addresses) Describe(to chan<- *prometheus.Desc) { to <- a.desc }

// Collect is prometheus.Collector's.
func (a *addresses) Collect(to chan<- prometheus.Metric) {
	for _, r := range a.ranges() {
		for state, n := range map[string]uint64{"used": r.Used, "free": r.Free, "leaked": r.Leaked, "reserved": r.Reserved} {
			to <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, float64(n), r.Network, r.Range, state)
		}
	}
}
