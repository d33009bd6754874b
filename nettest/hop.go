package nettest

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of a trace event (linux/netfilter/nf_tables.h, NFTA_TRACE_*).
const (
	traceTable = iota + 1
	traceChain
	traceRuleHandle
	traceType
	traceVerdict
	traceID
	traceLLHeader
	traceNetworkHeader
	traceTransportHeader
	traceIIF
	traceIIFType
	traceOIF
	traceOIFType
	traceMark
	traceNFProto
	tracePolicy
)

// Values of trace events.
const (
	msgTrace = unix.NFNL_SUBSYS_NFTABLES<<8 | 17 // NFT_MSG_TRACE

	tracePolicyType = 1 // NFT_TRACETYPE_POLICY
	traceRuleType   = 3 // NFT_TRACETYPE_RULE

	verdictDrop = 0 // NF_DROP
	verdictCode = 1 // NFTA_VERDICT_CODE
)

// hop is a traced packet at a rule, or at the policy of a chain.
type hop struct {
	family       byte
	table, chain string
	handle       uint64
	policy       bool // the chain's, not a rule's
	dropped      bool
	packet       uint32 // tells packets apart
	iif, oif     uint32
	in, out      string // names of the interfaces
	proto        byte
	src, dst     netip.AddrPort // ports are 0 for other protocols
}

// parseHop reads an event. ok is false for what is no step of a packet.
func parseHop(m netlink.Message) (h hop, ok bool) {
	if uint16(m.Header.Type) != msgTrace || len(m.Data) < 4 {
		return h, false
	}
	d, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return h, false
	}
	d.ByteOrder = binary.BigEndian
	h.family = m.Data[0]
	var kind, policy uint32
	verdict, hasPolicy := int32(-1), false
	var network, transport []byte
	for d.Next() {
		switch d.Type() {
		case traceTable:
			h.table = Plain(d.String())
		case traceChain:
			h.chain = Plain(d.String())
		case traceRuleHandle:
			h.handle = d.Uint64()
		case traceType:
			kind = d.Uint32()
		case traceVerdict:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == verdictCode {
						verdict = int32(d.Uint32())
					}
				}
				return nil
			})
		case traceID:
			h.packet = d.Uint32()
		case traceNetworkHeader:
			network = d.Bytes()
		case traceTransportHeader:
			transport = d.Bytes()
		case traceIIF:
			h.iif = d.Uint32()
		case traceOIF:
			h.oif = d.Uint32()
		case tracePolicy:
			policy, hasPolicy = d.Uint32(), true
		}
	}
	if d.Err() != nil {
		return h, false
	}
	h.policy = kind == tracePolicyType
	h.dropped = kind == traceRuleType && verdict == verdictDrop || h.policy && hasPolicy && policy == verdictDrop
	h.addresses(network, transport)
	return h, true
}

// addresses reads the packet's headers, which come with its first event at a hook.
func (h *hop) addresses(network, transport []byte) {
	if len(network) == 0 {
		return
	}
	var src, dst netip.Addr
	switch {
	case network[0]>>4 == 4 && len(network) >= 20:
		h.proto = network[9]
		src, _ = netip.AddrFromSlice(network[12:16])
		dst, _ = netip.AddrFromSlice(network[16:20])
	case network[0]>>4 == 6 && len(network) >= 40:
		h.proto = network[6]
		src, _ = netip.AddrFromSlice(network[8:24])
		dst, _ = netip.AddrFromSlice(network[24:40])
	default:
		return
	}
	var ports [2]uint16
	if (h.proto == unix.IPPROTO_TCP || h.proto == unix.IPPROTO_UDP) && len(transport) >= 4 {
		ports = [2]uint16{binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])}
	}
	h.src, h.dst = netip.AddrPortFrom(src, ports[0]), netip.AddrPortFrom(dst, ports[1])
}

// nameLinks fills in the names of interfaces, and for events that came without headers
// and interfaces those of the packet's event before: the kernel tells them once a chain.
func nameLinks(node *Space, hops []hop) {
	names := make(map[uint32]string)
	if h, err := node.handle(); err == nil {
		if all, err := links(h); err == nil {
			for _, l := range all {
				names[uint32(l.Attrs().Index)] = Plain(l.Attrs().Name)
			}
		}
		h.Close()
	}
	last := make(map[uint32]hop)
	for i := range hops {
		h := &hops[i]
		if before, ok := last[h.packet]; ok && !h.src.IsValid() {
			h.src, h.dst, h.proto, h.iif, h.oif = before.src, before.dst, before.proto, before.iif, before.oif
		}
		h.in, h.out = names[h.iif], names[h.oif]
		last[h.packet] = *h
	}
}

// familyWord is nft's word for a table's family.
func (h *hop) familyWord() string {
	switch h.family {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	default:
		return fmt.Sprintf("family %d", h.family)
	}
}

// verdict says in words which rule or policy dropped the packet.
func (h *hop) verdict(ctx context.Context, node *Space) string {
	where := fmt.Sprintf("chain %s of table %s %s", h.chain, h.familyWord(), h.table)
	if h.policy {
		return "dropped by the policy of " + where
	}
	rule := ruleText(ctx, node, h)
	if rule == "" {
		return fmt.Sprintf("dropped by the rule with handle %d in %s", h.handle, where)
	}
	return fmt.Sprintf("dropped by the rule %q (handle %d) in %s", rule, h.handle, where)
}

// counters are what a rule has counted.
var counters = regexp.MustCompile(`counter packets \d+ bytes \d+ ?`)

// ruleText is a rule as nft prints it; empty without nft.
func ruleText(ctx context.Context, node *Space, h *hop) (text string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_ = node.Do(func() error { // the process begins in the namespace of its thread
		out, err := exec.CommandContext(ctx, "nft", "--handle", "--numeric", "list", "chain", h.familyWord(), h.table, h.chain).Output()
		for line := range strings.Lines(string(out)) {
			if rule, ok := strings.CutSuffix(strings.TrimSpace(line), fmt.Sprintf(" # handle %d", h.handle)); ok {
				text = Plain(counters.ReplaceAllString(rule, ""))
			}
		}
		return err
	})
	return text
}
