package report

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/engine"
)

// Runs is the metric of the runs of plugins.
type Runs struct{ duration *prometheus.HistogramVec }

// NewRuns registers the metric.
func NewRuns(reg prometheus.Registerer) (*Runs, error) {
	r := &Runs{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "crinet_plugin_run_duration_seconds", Buckets: engine.Buckets(),
		Help: "Duration of the runs of plugins for sandboxes, by plugin type, verb (ADD, DEL), how (builtin: inside crinetd; exec: its binary) and outcome (ok, error).",
	}, []string{"plugin", "verb", "how", "outcome"})}
	return r, reg.Register(r.duration)
}

// Observe counts the runs of ADD and DEL (cni.Observe).
func (r *Runs) Observe(ctx context.Context, _ cni.Run) (context.Context, []string, func(cni.Run)) {
	return ctx, nil, r.count
}

func (r *Runs) count(run cni.Run) {
	if run.Command != "ADD" && run.Command != "DEL" {
		return
	}
	how, outcome := "exec", "ok"
	if run.Builtin {
		how = "builtin"
	}
	if run.Err != nil {
		outcome = "error"
	}
	r.duration.WithLabelValues(run.Type, run.Command, how, outcome).Observe(run.Duration.Seconds())
}
