package report

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/crinet-project/crinet/cni/headroom"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/journal"
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

// addresses are the metrics of the ranges, read where they are counted.
type addresses struct {
	counter                *headroom.Counter
	states, free, capacity *prometheus.Desc
}

func newAddresses(counter *headroom.Counter) *addresses {
	desc := prometheus.NewDesc
	return &addresses{
		counter: counter,
		states: desc("crinet_ipam_addresses", "Addresses of host-local's ranges, by network, range and state "+
			"(used, free, leaked: held by no sandbox that is known, reserved: given to no pod). 2^53 stands for more than anybody counts.",
			[]string{"network", "range", "state"}, nil),
		free:     desc("crinet_ipam_pods_free", "How many more pods the selected network has addresses for.", []string{"network"}, nil),
		capacity: desc("crinet_ipam_pods_capacity", "How many pods the selected network has addresses for.", []string{"network"}, nil),
	}
}

// Describe is prometheus.Collector's.
func (a *addresses) Describe(to chan<- *prometheus.Desc) {
	to <- a.states
	to <- a.free
	to <- a.capacity
}

// Collect is prometheus.Collector's.
func (a *addresses) Collect(to chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, n uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	for _, r := range a.counter.Ranges() {
		for state, n := range map[string]uint64{"used": r.Used, "free": r.Free, "leaked": r.Leaked, "reserved": r.Reserved} {
			gauge(a.states, n, r.Network, r.Range, state)
		}
	}
	if network, free, usable, ok := a.counter.Left(); ok {
		gauge(a.free, free, network)
		gauge(a.capacity, usable, network)
	}
}

// attachments is the metric of the journal's records.
type attachments struct {
	records func() ([]*journal.Record, error)
	desc    *prometheus.Desc
}

func newAttachments(records func() ([]*journal.Record, error)) *attachments {
	return &attachments{records, prometheus.NewDesc("crinet_attachments",
		"Attachments of sandboxes in the journal, by state (attaching, attached, detaching).", []string{"state"}, nil)}
}

// Describe is prometheus.Collector's.
func (a *attachments) Describe(to chan<- *prometheus.Desc) { to <- a.desc }

// Collect is prometheus.Collector's.
func (a *attachments) Collect(to chan<- prometheus.Metric) {
	records, err := a.records()
	if err != nil {
		return // the other metrics count all the same
	}
	count := map[journal.State]int{journal.Attaching: 0, journal.Attached: 0, journal.Detaching: 0}
	for _, r := range records {
		count[r.State]++
	}
	for state, n := range count {
		to <- prometheus.MustNewConstMetric(a.desc, prometheus.GaugeValue, float64(n), string(state))
	}
}
