package hostport

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Pod is a pod with a sandbox and addresses.
type Pod struct {
	SandboxID            string
	Namespace, Name, UID string
	// IPs are the pod's addresses; of each family the first one is mapped to.
	IPs      []netip.Addr
	Mappings []Mapping
}

func (p Pod) identity() identity { return identity{p.Namespace, p.Name, p.UID} }

// String names the pod in errors.
func (p Pod) String() string {
	if p.SandboxID == "" {
		return fmt.Sprintf("pod %s/%s", p.Namespace, p.Name)
	}
	return fmt.Sprintf("pod %s/%s (sandbox %s)", p.Namespace, p.Name, p.SandboxID)
}

// family is what differs between IPv4 and IPv6.
type family struct {
	nfproto  byte // NFPROTO_*, which are AF_* too
	any      netip.Addr
	loopback netip.Prefix
	// The names of the family's sets.
	ports, addrPorts, hairpin string
}

func families() [2]family {
	return [2]family{
		{
			nfproto: 2, any: netip.IPv4Unspecified(), loopback: netip.MustParsePrefix("127.0.0.0/8"),
			ports: "ports4", addrPorts: "addr_ports4", hairpin: "hairpin4",
		},
		{
			nfproto: 10, any: netip.IPv6Unspecified(), loopback: netip.MustParsePrefix("::1/128"),
			ports: "ports6", addrPorts: "addr_ports6", hairpin: "hairpin6",
		},
	}
}

func (f family) has(addr netip.Addr) bool { return addr.IsValid() && addr.Is4() == f.any.Is4() }

// addrOf is the pod's address of the family, the zero Addr if it has none.
func (f family) addrOf(p Pod) netip.Addr {
	for _, ip := range p.IPs {
		if ip = ip.Unmap(); f.has(ip) {
			return ip.WithZone("")
		}
	}
	return netip.Addr{}
}

const (
	// setRouteLocalnet holds the interfaces on which route_localnet was switched on
	// by us, so that whoever comes after us knows what to switch off.
	setRouteLocalnet = "route_localnet"
	// setSameBridge holds pairs: the bridges of pods, each twice.
	setSameBridge = "same_bridge"
)

// elemKey names an element in the kernel: its set and its key, as bytes.
type elemKey struct{ set, key string }

// element is one element as it should be in the kernel. Sets have no val.
type element struct {
	elemKey
	val     string
	comment string
}

// elementsOf lists what the pod needs in the kernel. A mapping that no address of
// the pod can serve is an error.
func elementsOf(p Pod) ([]element, error) {
	comment := commentOf(p)
	served := make([]bool, len(p.Mappings))
	elements := make([]element, 0, 2*len(p.Mappings)+2)
	for _, f := range families() {
		ip := f.addrOf(p)
		if !ip.IsValid() {
			continue
		}
		before := len(elements)
		for i, m := range p.Mappings {
			if m.HostIP.IsValid() && !f.has(m.HostIP) {
				continue
			}
			served[i] = true
			elements = append(elements, element{f.keyFor(m), endpoint(ip, m.ContainerPort), comment})
		}
		if len(elements) > before {
			pair := string(ip.AsSlice()) + string(ip.AsSlice())
			elements = append(elements, element{elemKey{f.hairpin, pair}, "", comment})
		}
	}
	var wrong problems
	for i, m := range p.Mappings {
		if !served[i] {
			wrong.add(fmt.Errorf("hostPort %s: the pod has no address of that family (it has %v)", m, p.IPs))
		}
	}
	return elements, wrong.err()
}

func (f family) keyFor(m Mapping) elemKey {
	service := string([]byte{m.Protocol.number(), 0, 0, 0}) + portField(m.HostPort)
	if !m.HostIP.IsValid() || m.HostIP.IsUnspecified() {
		return elemKey{f.ports, service}
	}
	return elemKey{f.addrPorts, string(m.HostIP.AsSlice()) + service}
}

// mappingOf is the inverse of keyFor, without the container port. It says no to
// elements of other sets, and to what no Manager wrote.
func (f family) mappingOf(key elemKey) (Mapping, bool) {
	m := Mapping{HostIP: f.any}
	service := key.key
	switch {
	case key.set == f.ports:
	case key.set == f.addrPorts && len(service) > f.any.BitLen()/8:
		m.HostIP, _ = netip.AddrFromSlice([]byte(service[:f.any.BitLen()/8]))
		service = service[f.any.BitLen()/8:]
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
	return string(ip.AsSlice()) + portField(port)
}

// portField is a port as a field of a concatenation: fields fill registers of 4 bytes.
func portField(port uint16) string {
	return string(binary.BigEndian.AppendUint16(nil, port)) + "\x00\x00"
}

func ifnameElement(name string) element {
	return element{elemKey{setRouteLocalnet, ifnameField(name)}, "", ""}
}

func bridgeElement(name string) element {
	return element{elemKey{setSameBridge, ifnameField(name) + ifnameField(name)}, "", ""}
}

// ifnameField is an interface's name as a field of a key.
func ifnameField(name string) string {
	field := make([]byte, 16) // IFNAMSIZ
	copy(field, name)
	return string(field)
}

// maxComment is what nft takes and shows of a comment (NFTNL_UDATA_COMMENT_MAXLEN,
// less the final NUL).
const maxComment = 127

// commentOf is namespace/name, cut where it is longer than nft can show, and
// without what could upset a terminal.
func commentOf(p Pod) string {
	comment := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, p.Namespace+"/"+p.Name)
	return comment[:min(len(comment), maxComment)]
}
