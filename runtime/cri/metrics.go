package cri

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/crinet-project/crinet/runtime/engine"
)

// Metrics are the metrics of CRI calls.
type Metrics struct {
	calls    *prometheus.HistogramVec
	bypassed prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "crinet_cri_call_duration_seconds", Buckets: engine.Buckets(),
			Help: "Duration of CRI calls through crinetd, by method and gRPC code.",
		}, []string{"method", "code"}),
		bypassed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "crinet_bypassed_pods_total",
			Help: "Pods that the runtime networked without calling crinet.",
		}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.bypassed} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ObserveCall is told each CRI call's outcome by the proxy.
func (m *Metrics) ObserveCall(method string, code codes.Code, d time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(d.Seconds())
}

// Register adds the gauge of NetworkReady.
func (h *Hooks) Register(reg prometheus.Registerer) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "crinet_network_ready",
		Help: "1 when new pods can get a network (CRI's condition NetworkReady), else 0.",
	}, func() float64 {
		if h.Ready() != nil {
			return 0
		}
		return 1
	}))
}
