package hostport

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// Pod is a pod with a sandbox and addresses.
type Pod struct {
	SandboxID            string
	Namespace, Name, UID string
	// IPs are the pod's addresses; of each family the first one is mapped to.
	IPs      []netip.Addr
	Mappings []Mapping
	// Masquerade are the pod's addresses, each with the length of its subnet, whose
	// connections leave the subnet with an address of the node.
	Masquerade []netip.Prefix
	// NetNS is the path of the pod's network namespace. It may be empty: then it is
	// not known whether the pod's interface keeps the node from reaching it.
	NetNS string
	// Foreign says that somebody else maps the ports, such as the plugin portmap.
	// They are held against other pods, and the kernel is left alone.
	Foreign bool
}

func (p Pod) identity() identity { return identity{p.Namespace, p.Name, p.UID} }

// String names the pod in errors.
func (p Pod) String() string {
	if p.SandboxID == "" {
		return fmt.Sprintf("pod %s/%s", p.Namespace, p.Name)
	}
	return fmt.Sprintf("pod %s/%s (sandbox %s)", p.Namespace, p.Name, p.SandboxID)
}

// task names in errors what is done for the pod.
func (p Pod) task() string {
	if len(p.Mappings) == 0 {
		return "masquerade"
	}
	return "map the hostPorts of"
}

// family is an IP family and the names of its sets in the table.
type family struct {
	kernel.Family
	ports, addrPorts, hairpin, protected, masquerade string
}

func families() [2]family {
	return [2]family{
		{kernel.IPv4(), "ports4", "addr_ports4", "hairpin4", "protected4", "masquerade4"},
		{kernel.IPv6(), "ports6", "addr_ports6", "hairpin6", "protected6", "masquerade6"},
	}
}

// addrOf is the pod's address of the family, the zero Addr if it has none.
func (f family) addrOf(p Pod) netip.Addr {
	for _, ip := range p.IPs {
		if ip = ip.Unmap(); f.Has(ip) {
			return ip.WithZone("")
		}
	}
	return netip.Addr{}
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
