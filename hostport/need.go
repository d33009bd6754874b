package hostport

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// facts is what the kernel says about the way to a pod.
type facts struct {
	// paths lead to the pod's addresses, by family as in families.
	paths [2]kernel.Path
	// kind is the kind of the pod's own interface, empty if it is not known.
	kind string
}

// need is what one pod, or the Manager for itself, needs in the kernel.
type need struct {
	// own are elements that nobody else needs: claims keep pods apart.
	own []kernel.Element
	// shared are elements that others may need as well.
	shared []kernel.Element
	// localnet is the interface that needs route_localnet, "" if none does.
	localnet string
	// limits say from where the mappings do not answer, and why.
	limits []string
}

// needOf computes what the pod needs. A mapping that no address of the pod can
// serve is an error.
func needOf(pod Pod, known facts) (need, error) {
	var n need
	if pod.Foreign {
		return n, nil
	}
	comment := commentOf(pod)
	served := make([]bool, len(pod.Mappings))
	for i, f := range families() {
		ip := f.addrOf(pod)
		if !ip.IsValid() {
			continue
		}
		before := len(n.own)
		for i, m := range pod.Mappings {
			if m.HostIP.IsValid() && !f.Has(m.HostIP) {
				continue
			}
			served[i] = true
			n.own = append(n.own, kernel.Element{Key: f.keyFor(m), Value: endpoint(ip, m.ContainerPort), Comment: comment})
		}
		if len(n.own) > before {
			pair := string(ip.AsSlice()) + string(ip.AsSlice())
			n.shared = append(n.shared, kernel.Element{Key: kernel.Key{Set: f.hairpin, Bytes: pair}, Comment: comment})
		}
		if !isolated(known.kind) && len(pod.Mappings) > 0 {
			n.addPath(f, ip, pod.Mappings, known.paths[i])
		}
	}
	n.addMasquerade(pod.Masquerade, comment)
	if isolated(known.kind) && len(pod.Mappings) > 0 {
		n.limits = []string{fmt.Sprintf("hostPorts cannot answer: the pod's interface is a %s, which the kernel does not "+
			"connect with its own node; use a network with a bridge or veth for pods with hostPorts", known.kind)}
	}
	var wrong problems
	for i, m := range pod.Mappings {
		if !served[i] {
			wrong.add(fmt.Errorf("hostPort %s: the pod has no address of that family (it has %v)", m, pod.IPs))
		}
	}
	return n, wrong.err()
}

// addPath adds what the way to the pod's address needs.
func (n *need) addPath(f family, ip netip.Addr, mappings []Mapping, path kernel.Path) {
	forPods := leadsToPods(path.Link.Kind)
	if path.Link.Kind == "bridge" || path.Link.Kind == "veth" {
		n.shared = append(n.shared, interfacePair(path.Link.Name))
	}
	if path.Bridge != "" {
		n.limits = append(n.limits, fmt.Sprintf("hostPorts of %s do not answer pods of the same VLAN of %s, whose gateway is %s, while "+
			"net.bridge.bridge-nf-call-iptables or -ip6tables is 1: the bridge cannot translate into a VLAN", ip, path.Bridge, path.Link.Name))
	}
	if !f.Any.Is4() || !wantsLoopback(f, mappings) {
		return
	}
	switch {
	case forPods:
		n.localnet = path.Link.Name
		n.shared = append(n.shared, localnetElement(path.Link.Name))
	case path.Reason != "":
		n.limits = append(n.limits, "hostPorts do not answer on 127.0.0.1: "+path.Reason)
	default:
		n.limits = append(n.limits, fmt.Sprintf("hostPorts do not answer on 127.0.0.1: %s is reached over %q, "+
			"which is not an interface for pods alone", ip, path.Link.Name))
	}
}

func wantsLoopback(f family, mappings []Mapping) bool {
	for _, m := range mappings {
		if !m.HostIP.IsValid() || m.HostIP == f.Any || f.Loopback.Contains(m.HostIP) {
			return true
		}
	}
	return false
}

// leadsToPods reports whether interfaces of the kind are between node and pods,
// and not between node and world.
func leadsToPods(kind string) bool {
	switch kind {
	case "bridge", "veth", "netkit", "tun", "openvswitch":
		return true
	}
	return false
}

// isolated reports whether the kernel keeps interfaces of the kind apart from the
// interface of the node that they share.
func isolated(kind string) bool {
	switch kind {
	case "macvlan", "macvtap", "ipvlan", "ipvtap":
		return true
	}
	return false
}

func (f family) keyFor(m Mapping) kernel.Key {
	service := kernel.ProtocolField(m.Protocol.number()) + kernel.PortField(m.HostPort)
	if !m.HostIP.IsValid() || m.HostIP.IsUnspecified() {
		return kernel.Key{Set: f.ports, Bytes: service}
	}
	return kernel.Key{Set: f.addrPorts, Bytes: string(m.HostIP.AsSlice()) + service}
}

// mappingOf is the inverse of keyFor, without the container port. It returns false
// for elements of other sets, and for those that no Manager wrote.
func (f family) mappingOf(key kernel.Key) (Mapping, bool) {
	m := Mapping{HostIP: f.Any}
	service := key.Bytes
	switch {
	case key.Set == f.ports:
	case key.Set == f.addrPorts && len(service) > f.AddrLen():
		m.HostIP, _ = netip.AddrFromSlice([]byte(service[:f.AddrLen()]))
		service = service[f.AddrLen():]
	default:
		return Mapping{}, false
	}
	const serviceLen = 8
	if len(service) != serviceLen {
		return Mapping{}, false
	}
	m.HostPort = binary.BigEndian.Uint16([]byte(service[4:]))
	for _, m.Protocol = range []Protocol{TCP, UDP, SCTP} {
		if m.Protocol.number() == service[0] {
			return m, true
		}
	}
	return Mapping{}, false
}

func endpoint(ip netip.Addr, port uint16) string {
	return string(ip.AsSlice()) + kernel.PortField(port)
}

func localnetElement(name string) kernel.Element {
	return kernel.Element{Key: kernel.Key{Set: setRouteLocalnet, Bytes: kernel.InterfaceField(name)}}
}

// interfacePair matches what leaves by the interface on which it came in.
func interfacePair(name string) kernel.Element {
	field := kernel.InterfaceField(name)
	return kernel.Element{Key: kernel.Key{Set: setSameLink, Bytes: field + field}}
}
