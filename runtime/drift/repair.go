package drift

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// maxRepairPause bounds the time between repairs of a pod that somebody breaks again
	// and again; after calm of that length they begin anew.
	maxRepairPause = 5 * time.Minute
	// quickRepairs are so many repairs in a row before the time between them grows.
	quickRepairs = 10
)

// mend sets again what is amiss with a pod and crinetd's to set.
func (w *Watcher) mend(ctx context.Context, p *pod) {
	now := w.now()
	if w.Mode == Report || now.Before(p.repairAt) || !slices.ContainsFunc(p.found, func(f inspect.Finding) bool { return f.Fix != "" }) {
		return
	}
	if now.Sub(p.repaired) > maxRepairPause {
		p.repairs = 0
	}
	p.repaired, p.repairAt = now, now
	if p.repairs++; p.repairs > quickRepairs {
		p.repairAt = now.Add(min(w.Interval<<min(p.repairs-quickRepairs, 10), maxRepairPause))
	}

	var done, findings []inspect.Finding
	var failure error
	seen := false
	_, err := w.hold(ctx, p, func(ctx context.Context, r *journal.Record) {
		subject := w.Subjects()(r)
		done, findings, failure = inspect.Mend(ctx, subject, Owned(&r.Attachment, subject.Hairpin))
		findings, seen = w.amiss(p, findings)
	})
	if err != nil || !seen {
		return
	}
	log := w.Log.With("pod", p.record.Pod, "sandbox", p.record.Attachment.ContainerID)
	if failure != nil {
		log.Warn("a pod's network cannot be repaired", "err", failure, "nextTry", max(p.repairAt.Sub(now), w.Interval))
	}
	for _, f := range done {
		w.Metrics.repairs.WithLabelValues(f.Part).Inc()
		log.Info("a pod's network was repaired", "part", f.Part, "set", f.Want)
		if p.drift != nil && len(p.drift.Repaired) < maxRepaired {
			p.drift.Repaired = append(p.drift.Repaired, f.Want)
		}
	}
	if len(findings) == 0 && p.said != nil {
		p.checkDue = now
	}
	w.publishPod(p)
	w.set(p, findings)
}

// Owned returns what of an attachment is crinetd's own to set again: what a built-in
// plugin has set, and hairpin mode where crinetd sets that. What belongs to a plugin that
// was executed does not, and neither does what a later plugin of the chain may have
// changed on purpose.
func Owned(a *cni.Attachment, hairpin bool) func(inspect.Fix) bool {
	main, alone := interfacePlugin(a)
	return func(fix inspect.Fix) bool {
		switch fix {
		case inspect.FixHairpin:
			return hairpin || main == builtin.Bridge
		case inspect.FixLink, inspect.FixAddress:
			// ptp has routes beside those of the result, which go with these.
			return main == builtin.Bridge && alone
		case inspect.FixRoute:
			return main != "" && alone
		case inspect.FixHostEnd, inspect.FixPort, inspect.FixBridge, inspect.FixGateway, inspect.FixWay:
			return main != "" && alone
		}
		return false
	}
}

// interfacePlugin returns which built-in plugin made the sandbox's interface, bridge or
// ptp, empty if none did; alone says that no other plugin of the chain changes it.
func interfacePlugin(a *cni.Attachment) (main string, alone bool) {
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(a.ConfList, &list) != nil || len(list.Plugins) == 0 {
		return "", false
	}
	for _, b := range a.Builtin {
		if b.Type != list.Plugins[0].Type {
			continue
		}
		main = b.Type
		if len(b.Delegate) > 0 {
			delegate := struct{ Type string }{}
			if json.Unmarshal(b.Delegate, &delegate) != nil {
				return "", false
			}
			main = delegate.Type
		}
	}
	if main != builtin.Bridge && main != builtin.PTP {
		return "", false
	}
	// These leave link, addresses and routes alone.
	harmless := []string{"portmap", "bandwidth", "firewall"}
	for _, p := range list.Plugins[1:] {
		if !slices.Contains(harmless, p.Type) {
			return main, false
		}
	}
	return main, true
}
