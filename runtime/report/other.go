package report

import (
	"fmt"
	"time"

	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/journal"
)

// maxOthers is how many pods on another network are named.
const maxOthers = 10

// isElsewhere says whether a pod is on another network than new pods get.
func isElsewhere(r *journal.Record, wanted string) bool {
	return wanted != "" && !r.Trial && r.State == journal.Attached && r.Attachment.Network != wanted
}

// otherNetwork are the pods that are on another network than new pods get; nil if there
// are none.
func (s *Source) otherNetwork() *admin.OtherNetwork {
	if s.Watcher == nil {
		return nil
	}
	records, err := s.Engine.Records()
	if err != nil {
		return nil // crinetctl pods says why
	}
	all := admin.OtherNetwork{Network: s.Selection.Wanted()}
	for _, r := range records {
		if !isElsewhere(r, all.Network) {
			continue
		}
		if all.Count++; all.Count <= maxOthers {
			all.Pods = append(all.Pods, fmt.Sprintf("%s/%s (%s)", r.Pod.Namespace, r.Pod.Name, r.Attachment.Network))
		}
	}
	if all.Count == 0 {
		return nil
	}
	return &all
}

// waiting says what new pods wait for, and since when.
func (s *Source) waiting() (what string, since time.Time) {
	if what, since = s.Selection.Waiting(); what != "" {
		return what, since
	}
	if since = s.Chain.StatusWaits(); !since.IsZero() {
		return "the network's STATUS", since
	}
	return "", time.Time{}
}

// registerWaiting registers the metrics of what new pods wait for, and of pods on
// another network.
func (s *Source) registerWaiting(gauge func(name, help string, value func() float64) error) []error {
	return []error{
		gauge("crinet_network_waiting_seconds", "How long new pods have waited for a network: for its file, its plugins or its STATUS; 0 if there is one.", func() float64 {
			what, since := s.waiting()
			if what == "" {
				return 0
			}
			return time.Since(since).Seconds()
		}),
		gauge("crinet_pods_on_another_network", "Pods that are on another network than new pods get; crinetctl pods flags them.", func() float64 {
			others := s.otherNetwork()
			if others == nil {
				return 0
			}
			return float64(others.Count)
		}),
	}
}
