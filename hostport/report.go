package hostport

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// Report is the state of hostPorts on a node, for people and metrics. Reasons are
// empty where all is well.
type Report struct {
	// Unavailable says why hostPorts cannot be mapped.
	Unavailable string `json:"unavailable,omitempty"`
	// Listeners says for which protocols host processes that listen on a hostPort
	// cannot be seen, and why. Such hostPorts are mapped unchecked.
	Listeners string `json:"listeners,omitempty"`
	// Flows says why connection tracking entries cannot be deleted. UDP and SCTP flows
	// that began before a change of their mapping then go on as they were until they
	// time out.
	Flows string `json:"flows,omitempty"`
	// Limited holds the pods whose hostPorts are mapped and do not answer, or not from
	// everywhere: sandbox ID -> from where not, and why.
	Limited map[string]string `json:"limited,omitempty"`
}

// Report answers from memory.
func (m *Manager) Report() Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	var r Report
	if err := m.available(); err != nil {
		r.Unavailable = err.Error()
	}
	r.Listeners, r.Flows = m.limits.reasons()
	for id, p := range m.pods {
		if len(p.need.limits) == 0 {
			continue
		}
		if r.Limited == nil {
			r.Limited = make(map[string]string)
		}
		r.Limited[id] = strings.Join(p.need.limits, "; ")
	}
	return r
}

// limits is what the kernel cannot do, beside the mapping itself.
type limits struct {
	mu        sync.Mutex // guards what follows
	listeners map[Protocol]string
	flows     string
}

func (l *limits) reasons() (listeners, flows string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, p := range slices.Sorted(maps.Keys(l.listeners)) {
		all = append(all, string(p)+": "+l.listeners[p])
	}
	return strings.Join(all, "; "), l.flows
}

// noListeners notes that the sockets of a protocol cannot be listed, and logs it
// the first time. A kernel without SCTP has no SCTP sockets: nothing is amiss.
func (m *Manager) noListeners(ctx context.Context, p Protocol, err error) {
	m.limits.mu.Lock()
	defer m.limits.mu.Unlock()
	if p == SCTP || m.limits.listeners[p] != "" {
		return
	}
	if m.limits.listeners == nil {
		m.limits.listeners = make(map[Protocol]string)
	}
	m.limits.listeners[p] = err.Error() + " (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)"
	m.log.WarnContext(ctx, "host processes that listen on a hostPort of this protocol cannot be seen", "protocol", p, "reason", err)
}

// noFlows reports whether the error says that connection tracking entries cannot be
// deleted at all, notes it, and logs it the first time.
func (m *Manager) noFlows(ctx context.Context, err error) bool {
	if !errors.Is(err, kernel.ErrNoFlows) {
		return false
	}
	m.limits.mu.Lock()
	defer m.limits.mu.Unlock()
	if m.limits.flows == "" {
		m.limits.flows = err.Error()
		m.log.WarnContext(ctx, "UDP and SCTP flows to hostPorts cannot be ended when a mapping changes; they go on until they time out", "reason", err)
	}
	return true
}

// findLimits tries, at start, what may be lacking, so that it is known before a pod
// meets it.
func (m *Manager) findLimits(ctx context.Context) {
	for _, p := range []Protocol{TCP, UDP} {
		const anyPort = 1 // few sockets, or none, are on it
		if _, err := m.host.Listeners(kernel.IPv4().Number, p.number(), anyPort); errors.Is(err, kernel.ErrNoListeners) {
			m.noListeners(ctx, p, err)
		}
	}
	if err := m.host.CheckFlows(); err != nil && !m.noFlows(ctx, err) && !errors.Is(err, kernel.ErrInterrupted) {
		m.log.WarnContext(ctx, "connection tracking cannot be read", "error", err)
	}
}
