package runtime

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Metrics are the manager's metrics. Their labels have few values; pods and
// sandboxes are not among them.
type Metrics struct {
	step     *prometheus.HistogramVec
	plugins  *prometheus.HistogramVec
	calls    *prometheus.HistogramVec
	bypassed prometheus.Counter
}

// buckets reach from a call that only passes through to one that times out.
var buckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		step: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "crinet_pod_step_duration_seconds", Buckets: buckets,
			Help: "Duration of the steps of a pod sandbox's lifecycle: create, netns, plugin, start.",
		}, []string{"step"}),
		plugins: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "crinet_network_operation_duration_seconds", Buckets: buckets,
			Help: "Duration of operations of the network plugin on one sandbox, by verb (ADD, DEL) and outcome (ok, error).",
		}, []string{"verb", "outcome"}),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "crinet_cri_call_duration_seconds", Buckets: buckets,
			Help: "Duration of CRI calls through crinetd, by method and gRPC code.",
		}, []string{"method", "code"}),
		bypassed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "crinet_bypassed_pods_total",
			Help: "Pods that the runtime networked without calling crinet.",
		}),
	}
	for _, c := range []prometheus.Collector{m.step, m.plugins, m.calls, m.bypassed} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Register adds the gauges that read the manager's state.
func (m *Manager) Register(reg prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "crinet_undo_pending",
			Help: "Attachments of sandboxes that are still to be removed from their network.",
		}, func() float64 { return float64(m.undo.waiting()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "crinet_network_ready",
			Help: "1 when new pods can get a network (CRI's condition NetworkReady), else 0.",
		}, func() float64 {
			if m.Plugin.Status() != nil {
				return 0
			}
			return 1
		}),
	} {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// ObserveCall is told each CRI call's outcome by the proxy.
func (m *Metrics) ObserveCall(method string, code codes.Code, d time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(d.Seconds())
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
