package hostport

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// MaxMappings is how many hostPorts one pod may have.
const MaxMappings = 10_000

// Protocol is a transport protocol that hostPorts can be mapped for.
type Protocol string

// The protocols of a Kubernetes ContainerPort.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// number is the protocol's number in the IP header (IANA).
func (p Protocol) number() byte {
	switch p {
	case UDP:
		return 17
	case SCTP:
		return 132
	default:
		return 6
	}
}

// Mapping sends what arrives on the node at HostPort to ContainerPort of the pod.
type Mapping struct {
	Protocol Protocol `json:"protocol"`
	// HostIP is the node's address that the mapping is for. The zero value means
	// every address of every family that the pod has; 0.0.0.0 means every IPv4
	// address, :: every IPv6 address.
	HostIP        netip.Addr `json:"hostIP,omitzero"`
	HostPort      uint16     `json:"hostPort"`
	ContainerPort uint16     `json:"containerPort"`
}

// String returns the mapping in a form such as "tcp 192.0.2.1:80".
func (m Mapping) String() string {
	host := "*"
	if m.HostIP.IsValid() {
		host = m.HostIP.String()
		if m.HostIP.Is6() {
			host = "[" + host + "]"
		}
	}
	return fmt.Sprintf("%s %s:%d", m.Protocol, host, m.HostPort)
}

// Request is a mapping that has not been checked: a CRI PortMapping, or an entry of
// CNI's portMappings capability.
type Request struct {
	// Protocol is tcp, udp or sctp, in upper or lower case; empty is tcp.
	Protocol      string
	HostIP        string
	HostPort      int32
	ContainerPort int32
}

// ParseMappings checks the requests of one pod and returns its mappings, sorted
// and without repetitions. Requests with a hostPort of 0 ask for nothing and are
// left out. The error names every request that is wrong (the first few, if there
// are many); there are no mappings then.
func ParseMappings(requests []Request) ([]Mapping, error) {
	var wrong problems
	mappings := make([]Mapping, 0, min(len(requests), MaxMappings))
	for i, r := range requests {
		if r.HostPort == 0 {
			continue
		}
		if len(mappings) == MaxMappings {
			return nil, fmt.Errorf("more than %d hostPorts for one pod; ask for fewer", MaxMappings)
		}
		m, err := parse(r)
		if err != nil {
			wrong.add(fmt.Errorf("port mapping %d (%s): %w", i, r, err))
			continue
		}
		mappings = append(mappings, m)
	}
	if err := wrong.err(); err != nil {
		return nil, err
	}
	slices.SortFunc(mappings, compareMappings)
	mappings = slices.Compact(mappings)
	if err := checkOverlaps(mappings); err != nil {
		return nil, err
	}
	return mappings, nil
}

// String returns the request as it came, with long values cut.
func (r Request) String() string {
	return fmt.Sprintf("protocol %.20q, hostIP %.60q, hostPort %d, containerPort %d",
		r.Protocol, r.HostIP, r.HostPort, r.ContainerPort)
}

func parse(r Request) (Mapping, error) {
	m := Mapping{Protocol: TCP}
	if r.Protocol != "" {
		m.Protocol = Protocol(strings.ToLower(r.Protocol))
	}
	switch m.Protocol {
	case TCP, UDP, SCTP:
	default:
		return Mapping{}, errors.New("the protocol must be tcp, udp or sctp")
	}
	if r.HostPort < 1 || r.HostPort > 65535 {
		return Mapping{}, errors.New("hostPort must be between 1 and 65535")
	}
	if r.ContainerPort < 1 || r.ContainerPort > 65535 {
		return Mapping{}, errors.New("containerPort must be between 1 and 65535")
	}
	m.HostPort, m.ContainerPort = uint16(r.HostPort), uint16(r.ContainerPort)
	if r.HostIP == "" {
		return m, nil
	}
	addr, err := netip.ParseAddr(r.HostIP)
	if err != nil {
		return Mapping{}, errors.New("hostIP is not an IP address")
	}
	m.HostIP = addr.Unmap()
	return m, checkHostIP(m.HostIP)
}

func checkHostIP(addr netip.Addr) error {
	switch {
	case addr.Zone() != "":
		return errors.New("hostIP must not have a zone")
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("hostIP must be an address of one node, not of many")
	}
	return nil
}

func compareMappings(a, b Mapping) int {
	return cmp.Or(
		cmp.Compare(a.Protocol, b.Protocol),
		cmp.Compare(a.HostPort, b.HostPort),
		a.HostIP.Compare(b.HostIP),
		cmp.Compare(a.ContainerPort, b.ContainerPort),
	)
}

// checkOverlaps refuses a host port that leads to two container ports. In the sorted
// mappings wildcards come before the addresses that they stand for, so that each
// mapping is compared with at most three that came before it.
func checkOverlaps(mappings []Mapping) error {
	type key struct {
		portKey
		hostIP netip.Addr
	}
	var wrong problems
	seen := make(map[key]Mapping, len(mappings))
	for _, m := range mappings {
		for _, hostIP := range coveredBy(m.HostIP) {
			before, ok := seen[key{keyOf(m), hostIP}]
			if ok && before.ContainerPort != m.ContainerPort {
				wrong.add(fmt.Errorf("%s leads to container port %d, and %s to container port %d; drop one",
					before, before.ContainerPort, m, m.ContainerPort))
			}
		}
		if _, ok := seen[key{keyOf(m), m.HostIP}]; !ok {
			seen[key{keyOf(m), m.HostIP}] = m
		}
	}
	return wrong.err()
}

// coveredBy lists the hostIPs that cover addr: itself and the wildcards.
func coveredBy(addr netip.Addr) []netip.Addr {
	switch {
	case !addr.IsValid():
		return []netip.Addr{{}}
	case addr.IsUnspecified():
		return []netip.Addr{addr, {}}
	case addr.Is4():
		return []netip.Addr{addr, netip.IPv4Unspecified(), {}}
	default:
		return []netip.Addr{addr, netip.IPv6Unspecified(), {}}
	}
}

// overlap reports whether there is an address that both hostIPs stand for.
func overlap(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() {
		return true
	}
	if a.Is4() != b.Is4() {
		return false
	}
	return a == b || a.IsUnspecified() || b.IsUnspecified()
}

// problems collects errors and limits the length of their text.
type problems struct {
	first []error
	more  int
}

const maxProblems = 5

func (p *problems) add(err error) {
	if len(p.first) < maxProblems {
		p.first = append(p.first, err)
		return
	}
	p.more++
}

func (p *problems) err() error {
	if p.more > 0 {
		return errors.Join(append(p.first, fmt.Errorf("and %d more", p.more))...)
	}
	return errors.Join(p.first...)
}
