package drift

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Drift is what is, or was last, amiss with the network of a pod.
type Drift struct {
	Pod     journal.Pod
	Sandbox string
	// Since is when it was noticed, Ended when it was over; zero while it is not.
	Since, Ended time.Time
	// Findings are what is amiss, or was at last.
	Findings []inspect.Finding
	// Repaired is what crinetd has set again.
	Repaired []string
	// Remaking is when the sandbox was given to be made anew; zero if it was not.
	Remaking time.Time
}

// String says what is amiss and what became of it, in one line.
func (d *Drift) String() string {
	var all []string
	for _, f := range d.Findings {
		all = append(all, f.String())
	}
	text := strings.Join(all, "; ")
	if len(d.Repaired) > 0 {
		text += "; crinetd has set again: " + strings.Join(d.Repaired, ", ")
	}
	if !d.Remaking.IsZero() {
		text += "; the kubelet is to make the sandbox anew"
	}
	return strings.TrimPrefix(text, "; ")
}

// maxRepaired is how many repairs of one drift are named.
const maxRepaired = 16

// tell tells of a change in what is amiss with a pod: in the log once, and to all who
// ask.
func (w *Watcher) tell(p *pod) {
	now, all := w.now(), p.all()
	log := w.Log.With("pod", p.record.Pod, "sandbox", p.record.Attachment.ContainerID, "network", p.record.Attachment.Network)
	switch {
	case len(all) > 0:
		if p.drift == nil {
			p.drift = &Drift{Pod: p.record.Pod, Sandbox: p.record.Attachment.ContainerID, Since: now}
		}
		for _, f := range all {
			if !has(p.drift.Findings, f) {
				w.Metrics.drifts.WithLabelValues(f.Part).Inc()
			}
		}
		p.drift.Findings = all
		log.Warn("a pod's network is not as it was made", "drift", p.drift.String())
	case p.drift != nil:
		p.drift.Ended, p.drift.Remaking = now, time.Time{}
		log.Info("a pod's network is again as it was made", "drifted", now.Sub(p.drift.Since).Round(time.Millisecond), "drift", p.drift.String())
	default:
		return
	}
	w.publishPod(p)
	if len(all) == 0 {
		p.drift = nil
	}
	w.publish()
}

// publishPod shows a pod's drift to all who ask.
func (w *Watcher) publishPod(p *pod) {
	if p.drift == nil {
		return
	}
	shown := *p.drift
	shown.Findings, shown.Repaired = slices.Clone(shown.Findings), slices.Clone(shown.Repaired)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told[p.record.Key()] = shown
}

// Of returns the drift of an attachment; nil if there is none, and none was since
// crinetd began.
func (w *Watcher) Of(key journal.Key) *Drift {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d, ok := w.told[key]; ok {
		return &d
	}
	return nil
}

// Drifted returns the pods that are drifted now, the longest first.
func (w *Watcher) Drifted() []Drift {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Drift
	for _, d := range w.told {
		if d.Ended.IsZero() {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b Drift) int {
		return cmp.Or(a.Since.Compare(b.Since), strings.Compare(a.Sandbox, b.Sandbox))
	})
	return all
}

// Metrics are those of drift.
type Metrics struct {
	drifts, repairs     *prometheus.CounterVec
	remade, looks, busy prometheus.Counter
	checks, checkErrors prometheus.Counter
}

// NewMetrics registers the metrics.
func NewMetrics(reg prometheus.Registerer) (*Metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		drifts:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crinet_drifts_total", Help: "Parts of pods' networks that were found not to be as ADD left them, by part."}, []string{"part"}),
		repairs:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "crinet_drift_repairs_total", Help: "What crinetd has set again of pods' networks, by part."}, []string{"part"}),
		remade:      counter("crinet_drift_recreations_total", "Sandboxes that the kubelet was asked to make anew, since their network had drifted."),
		looks:       counter("crinet_drift_looks_total", "Comparisons of a pod's network with the kernel."),
		busy:        counter("crinet_drift_seconds_total", "Time that was spent looking for drift."),
		checks:      counter("crinet_drift_checks_total", "CHECKs that ran for pods that stand."),
		checkErrors: counter("crinet_drift_check_failures_total", "CHECKs that failed, also of networks whose CHECK never passes."),
	}
	// So that the first drift is an increase.
	for _, part := range inspect.Parts() {
		m.drifts.WithLabelValues(part)
		m.repairs.WithLabelValues(part)
	}
	for _, c := range []prometheus.Collector{m.drifts, m.repairs, m.remade, m.looks, m.busy, m.checks, m.checkErrors} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("metrics of drift: %w", err)
		}
	}
	return m, nil
}

// Register adds the gauge of pods that are drifted.
func (w *Watcher) Register(reg prometheus.Registerer) error {
	return reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "crinet_pods_drifted", Help: "Pods whose network is not as ADD left it; crinetctl pods says what is amiss.",
	}, func() float64 { return float64(len(w.Drifted())) }))
}
