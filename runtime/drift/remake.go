package drift

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/crinet-project/crinet/inspect"
)

const (
	// remadeName is the name in Meta of when sandboxes were given to be made anew.
	remadeName = "drift/remade"
	// remadeWindow and remadeShare limit that: a tenth of the pods an hour.
	remadeWindow, remadeShare = time.Hour, 10
)

// remake gives drifted sandboxes to be made anew, the longest drifted first, as many as
// the limit allows.
func (w *Watcher) remake() {
	if w.Mode != Recreate {
		return
	}
	now := w.now()
	w.remade = slices.DeleteFunc(w.remade, func(at time.Time) bool { return now.Sub(at) >= remadeWindow })
	var waiting []*pod
	for _, p := range w.pods {
		if p.drift != nil && p.drift.Remaking.IsZero() && p.suspects == nil && remakes(p.drift.Findings) {
			waiting = append(waiting, p)
		}
	}
	slices.SortFunc(waiting, func(a, b *pod) int { return a.drift.Since.Compare(b.drift.Since) })
	free := max(1, len(w.pods)/remadeShare) - len(w.remade)
	for _, p := range waiting[:max(0, min(free, len(waiting)))] {
		w.remade = append(w.remade, now)
		if err := w.saveRemade(); err != nil {
			w.Log.Error("a drifted sandbox is not given to be made anew, since that cannot be counted over a restart", "pod", p.record.Pod, "err", err)
			return
		}
		p.drift.Remaking = now
		w.Metrics.remade.Inc()
		w.Log.Warn("the kubelet is told to make a sandbox anew, since its network is not as it was made",
			"pod", p.record.Pod, "sandbox", p.record.Attachment.ContainerID, "drift", p.drift.String())
		w.publishPod(p)
	}
	w.publish()
}

// remakes says whether a new sandbox would not have the fault: settings of the node and
// the table stay as they are.
func remakes(findings []inspect.Finding) bool {
	return slices.ContainsFunc(findings, func(f inspect.Finding) bool {
		return f.Part != inspect.PartSysctl && f.Part != inspect.PartTable
	})
}

func (w *Watcher) saveRemade() error {
	value, err := json.Marshal(w.remade)
	if err != nil {
		return err
	}
	return w.Meta.PutMeta(remadeName, value)
}

// loadRemade reads what an earlier run gave to be made anew. Times to come, by a clock
// that was wrong, count as now.
func (w *Watcher) loadRemade() {
	value, err := w.Meta.Meta(remadeName)
	if err != nil || len(value) == 0 || json.Unmarshal(value, &w.remade) != nil {
		w.remade = nil
		return
	}
	now := w.now()
	for i, at := range w.remade {
		if at.After(now) {
			w.remade[i] = now
		}
	}
}

// publish shows which sandboxes are to be made anew.
func (w *Watcher) publish() {
	ids := make(map[string]bool)
	w.mu.Lock()
	for key, d := range w.told {
		if d.Ended.IsZero() && !d.Remaking.IsZero() {
			ids[key.ContainerID] = true
		}
	}
	w.mu.Unlock()
	if now := w.marked.Load(); now != nil && maps.Equal(*now, ids) {
		return
	}
	w.marked.Store(&ids)
}

// Remaking returns the ids of the sandboxes that are to be made anew; nil if there are
// none. The caller must not change it.
func (w *Watcher) Remaking() map[string]bool {
	if ids := w.marked.Load(); ids != nil && len(*ids) > 0 {
		return *ids
	}
	return nil
}
