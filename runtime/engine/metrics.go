package engine

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Metrics are the engine's metrics. Their labels have few values; pods and
// sandboxes are not among them.
type Metrics struct {
	step    *prometheus.HistogramVec
	plugins *prometheus.HistogramVec
	journal prometheus.Histogram
}

// Buckets are the bounds of duration metrics in seconds: from a call that only
// passes through to one that times out.
func Buckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		step: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "crinet_pod_step_duration_seconds", Buckets: Buckets(),
			Help: "Duration of the steps of a pod sandbox's lifecycle: create, netns, plugin, start.",
		}, []string{"step"}),
		plugins: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "crinet_network_operation_duration_seconds", Buckets: Buckets(),
			Help: "Duration of operations of the network plugin on one sandbox, by verb (ADD, DEL, GC) and outcome (ok, error).",
		}, []string{"verb", "outcome"}),
		journal: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "crinet_journal_write_duration_seconds", Buckets: Buckets(),
			Help: "Duration of the journal's writes that wait for the disk: one for each pod, before ADD.",
		}),
	}
	for _, c := range []prometheus.Collector{m.step, m.plugins, m.journal} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Register adds the gauges of what is still to be undone and of what fails.
func (e *Engine) Register(reg prometheus.Registerer) error {
	gauge := func(name, help string, value func() int) error {
		return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return float64(value()) }))
	}
	return errors.Join(
		gauge("crinet_undo_pending", "Attachments of sandboxes that are still to be removed from their network.", e.Pending),
		gauge("crinet_add_failures_in_a_row", "ADDs of the selected network that failed since the last one that succeeded.", e.AddFailures),
	)
}

func (m *Metrics) steps(steps []journal.StepTime) {
	for _, s := range steps {
		m.step.WithLabelValues(s.Step).Observe(s.Duration.Seconds())
	}
}

func (m *Metrics) plugin(verb string, err error, d time.Duration) {
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	m.plugins.WithLabelValues(verb, outcome).Observe(d.Seconds())
}
