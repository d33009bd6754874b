package hostport

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/ipset/ip_set.h.
const (
	ipsetCreate, ipsetAdd, ipsetDel = 2, 9, 10

	attrSetName, attrTypeName, attrRevision, attrFamily, attrData = 2, 3, 4, 5, 7
	attrIP, attrPort, attrPortTo, attrProto                       = 1, 4, 5, 7
)

// nodePort makes or removes a node port as kube-proxy in IPVS mode does, and makes
// its ipset first if that is not there.
func (ns netns) nodePort(t *testing.T, set string, port uint16, there bool) {
	t.Helper()
	bigEndian := func(a *netlink.AttributeEncoder, kind, value uint16) {
		a.Bytes(kind|unix.NLA_F_NET_BYTEORDER, []byte{byte(value >> 8), byte(value)})
	}
	kind, revision, family := "bitmap:port", uint8(3), uint8(0)
	bounds := func(a *netlink.AttributeEncoder) error {
		bigEndian(a, attrPort, 0)
		bigEndian(a, attrPortTo, 65535)
		return nil
	}
	entry := func(a *netlink.AttributeEncoder) error {
		bigEndian(a, attrPort, port)
		return nil
	}
	if strings.HasSuffix(set, "-HASH") {
		kind, revision, family = "hash:ip,port", 5, unix.AF_INET
		bounds = func(*netlink.AttributeEncoder) error { return nil }
		entry = func(a *netlink.AttributeEncoder) error {
			a.Nested(attrIP, func(a *netlink.AttributeEncoder) error {
				a.Bytes(1|unix.NLA_F_NET_BYTEORDER, []byte{192, 0, 2, 1})
				return nil
			})
			a.Uint8(attrProto, unix.IPPROTO_SCTP)
			bigEndian(a, attrPort, port)
			return nil
		}
	}
	ns.ipset(t, ipsetCreate, set, func(a *netlink.AttributeEncoder) {
		a.String(attrTypeName, kind)
		a.Uint8(attrRevision, revision)
		a.Uint8(attrFamily, family)
		a.Nested(attrData, bounds)
	})
	command := ipsetAdd
	if !there {
		command = ipsetDel
	}
	ns.ipset(t, command, set, func(a *netlink.AttributeEncoder) { a.Nested(attrData, entry) })
}

// ipset sends a request about an ipset.
func (ns netns) ipset(t *testing.T, command int, set string, about func(*netlink.AttributeEncoder)) {
	t.Helper()
	a := netlink.NewAttributeEncoder()
	a.Uint8(1, 6) // the protocol's version
	a.String(attrSetName, set)
	about(a)
	body, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.fd()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_IPSET<<8 | command), Flags: netlink.Request | netlink.Acknowledge},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, body...),
	})
	if err != nil {
		t.Fatalf("ipset %s, command %d: %v", set, command, err)
	}
}

// TestNodePortsOfIPVSWin has node ports in the ipsets in which kube-proxy in IPVS
// mode keeps them, and processes that answer in the place of IPVS.
func TestNodePortsOfIPVSWin(t *testing.T) {
	const set = "KUBE-NODE-PORT-TCP"
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	for _, network := range []string{"tcp4", "tcp6"} {
		web.serve(t, "web", network, ":8080")
		n.node.serve(t, "service", network, ":30080")
	}
	n.node.nodePort(t, set, 30080, true)
	m := newManager(t, n.node, func(c *Config) { c.Conflict = Warn; c.CheckInterval = 100 * time.Millisecond })
	run(t, t.Context(), n.node, m)
	mustMap(t, m, web.pod(t, "tcp 30080:8080", "tcp 30081:8080", "tcp 127.0.0.1 30082:8080"))
	n.client.expect(t, "tcp4", hostPort(nodeIP4, 30080), "web "+clientIP4) // no kube-ipvs0, no IPVS

	becomes := func(ip string, port int, answer string) {
		t.Helper()
		eventually(t, 10*time.Second, func() error {
			network, client := "tcp4", clientIP4
			if strings.Contains(ip, ":") {
				network, client = "tcp6", clientIP6
			}
			got, err := n.client.call(network, hostPort(ip, port))
			if want := answer + " " + client; err != nil || got != want {
				return fmt.Errorf("%s:%d answers %q, %w, want %q", ip, port, got, err, want)
			}
			return nil
		})
	}
	n.node.run(t, "ip", "link", "add", kubeIPVS, "type", "bridge")
	becomes(nodeIP4, 30080, "service")
	becomes(nodeIP6, 30080, "web") // its own ipset is not there
	becomes(nodeIP4, 30081, "web")
	if limited := m.Report().Limited; len(limited) != 1 || !strings.Contains(fmt.Sprint(limited), "tcp 0.0.0.0:30080 (ipset "+set+")") {
		t.Errorf("the report says %q", limited)
	}
	n.node.nodePort(t, "KUBE-6-NODE-PORT-TCP", 30080, true)
	becomes(nodeIP6, 30080, "service")
	n.node.nodePort(t, set, 30082, true)
	n.node.nodePort(t, set, 30080, false)
	becomes(nodeIP4, 30080, "web")
	n.node.expect(t, "tcp4", hostPort("127.0.0.1", 30082), "web "+gwIP4)
}

// TestNodePortOfIPVSIsRefused names the ipset to a pod that wants a node port, and
// leaves others alone.
func TestNodePortOfIPVSIsRefused(t *testing.T) {
	n := newTestNode(t, "cni0")
	n.node.run(t, "ip", "link", "add", kubeIPVS, "type", "bridge")
	n.node.nodePort(t, "KUBE-NODE-PORT-UDP", 30053, true)
	n.node.nodePort(t, "KUBE-NODE-PORT-SCTP-HASH", 30132, true)
	m := newManager(t, n.node)
	for mapping, set := range map[string]string{
		"udp 30053:53": "KUBE-NODE-PORT-UDP", "sctp 30132:132": "KUBE-NODE-PORT-SCTP-HASH",
		"tcp 30053:53": "", "udp fd00::1 30053:53": "", "udp 127.0.0.1 30053:53": "",
	} {
		r, err := m.Reserve(t.Context(), testPod(t, "dns", nil, mapping))
		var conflict *ConflictError
		if errors.As(err, &conflict) != (set != "") || conflict != nil && !strings.Contains(conflict.Holder, set) {
			t.Errorf("%s: %v, want a conflict with %q", mapping, err, set)
		}
		if err == nil {
			r.Release()
		}
	}
}
