package hostport

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// nodePortDelay is how long after a change of the Services' addresses the node
// ports are read: kube-proxy writes them last, and nobody tells of that.
const nodePortDelay = 2 * time.Second

// readNodePorts takes over which node ports kube-proxy in IPVS mode has, and
// changes the desired state of the pods that this is about. IPVS translates after
// us: a mapping would take the node port away from its Service. What cannot be
// read stays as it was.
func (m *Manager) readNodePorts(ctx context.Context) {
	ports, err := m.host.NodePorts(m.protected)
	if err != nil {
		if m.nodePortTrouble != err.Error() {
			m.log.WarnContext(ctx, "hostPorts may take node ports of kube-proxy in IPVS mode away", "error", err)
		}
		m.nodePortTrouble = err.Error()
		return
	}
	m.nodePortTrouble = ""
	if maps.Equal(ports, m.nodePorts) {
		return
	}
	m.nodePorts = ports
	yielded := false
	for id, p := range m.pods {
		next := m.yielding(p.full)
		if reflect.DeepEqual(next, p.need) {
			continue
		}
		p.need = next
		m.desired.set(id, next)
		m.warn(ctx, p.pod, next)
		yielded = true
	}
	if !yielded {
		return
	}
	// At once, so that it does not look like somebody else's change.
	if _, err := m.settle(ctx, nil, false); err != nil {
		m.log.WarnContext(ctx, "hostPorts take node ports of kube-proxy in IPVS mode away for now", "error", err)
		raise(m.alarms, "a change for node ports failed")
	}
}

// yielding is what a pod needs, less the mappings whose port a Service has as its
// node port. Those for loopback addresses stay: IPVS does not serve them.
func (m *Manager) yielding(full need) need {
	if len(m.nodePorts) == 0 {
		return full
	}
	next := full
	next.own = nil
	var lost []string
	for _, e := range full.own {
		mapping, set := m.nodePortOf(e.Key)
		if set == "" {
			next.own = append(next.own, e)
			continue
		}
		if text := fmt.Sprintf("%s (ipset %s)", mapping, set); !slices.Contains(lost, text) {
			lost = append(lost, text)
		}
	}
	if len(lost) > 0 {
		next.limits = append(slices.Clone(full.limits), "these hostPorts are not mapped, since kube-proxy in IPVS mode has them as "+
			"node ports of Services: "+strings.Join(lost[:min(len(lost), maxProblems)], ", "))
	}
	return next
}

// nodePortOf returns the mapping that an element is for and the ipset that has its
// port, "" if none has.
func (m *Manager) nodePortOf(key kernel.Key) (Mapping, string) {
	for _, f := range families() {
		mapping, ok := f.mappingOf(key)
		if !ok || f.Loopback.Contains(mapping.HostIP) {
			continue
		}
		return mapping, m.nodePorts[kernel.NodePort{Family: f.Number, Protocol: mapping.Protocol.number(), Port: mapping.HostPort}]
	}
	return Mapping{}, ""
}

// checkNodePorts refuses a pod with a hostPort that a Service has as its node port.
func (m *Manager) checkNodePorts(mappings []Mapping) error {
	if m.mode != Refuse || len(m.nodePorts) == 0 {
		return nil
	}
	for _, mapping := range mappings {
		for _, f := range families() {
			if mapping.HostIP.IsValid() && !f.Has(mapping.HostIP) {
				continue
			}
			if _, set := m.nodePortOf(f.keyFor(mapping)); set != "" {
				return &ConflictError{Mapping: mapping, Holder: "a Service, as its node port (kube-proxy in IPVS mode, ipset " + set + ")"}
			}
		}
	}
	return nil
}
