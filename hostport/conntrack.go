package hostport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// From linux/netfilter/nfnetlink_conntrack.h.
const (
	ctMsgGet, ctMsgDelete = 1, 2

	ctaTupleOrig, ctaTupleReply, ctaID, ctaZone, ctaFilter = 1, 2, 12, 18, 25
	ctaTupleIP, ctaTupleProto                              = 1, 2
	ctaIPv4Src, ctaIPv4Dst, ctaIPv6Src, ctaIPv6Dst         = 1, 2, 3, 4
	ctaProtoNum, ctaProtoSrcPort, ctaProtoDstPort          = 1, 2, 3
	ctaFilterOrigFlags, ctaFilterReplyFlags                = 1, 2

	// What CTA_FILTER compares (nf_internals.h of the kernel's netfilter).
	ctFilterIPSrc, ctFilterIPDst                       = 1 << 0, 1 << 1
	ctFilterProtoNum, ctFilterSrcPort, ctFilterDstPort = 1 << 3, 1 << 4, 1 << 5
)

// maxFlushes is up to where deleting by filter, in 0.2 to 0.4 ms each, is cheaper
// than listing, which takes the locks of all of the kernel's buckets.
const maxFlushes = 16

// tracker deletes entries of connection tracking. It keeps its sockets: closing one
// makes the kernel wait for what the last nftables transaction left to be freed,
// ten milliseconds and more.
type tracker struct {
	netns int
	mu    sync.Mutex
	idle  []*netlink.Conn
}

// maxIdle is how many sockets a tracker keeps.
const maxIdle = 4

func (t *tracker) take() (*netlink.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last := len(t.idle) - 1; last >= 0 {
		conn := t.idle[last]
		t.idle = t.idle[:last]
		if err := conn.SetDeadline(time.Now().Add(kernelPatience)); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return conn, nil
	}
	return dial(unix.NETLINK_NETFILTER, t.netns)
}

// giveBack keeps the socket for the next one, unless answers may still be under way.
func (t *tracker) giveBack(conn *netlink.Conn, failed error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if failed == nil && len(t.idle) < maxIdle {
		t.idle = append(t.idle, conn)
		return nil
	}
	return conn.Close()
}

func (t *tracker) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var wrong []error
	for _, conn := range t.idle {
		wrong = append(wrong, conn.Close())
	}
	t.idle = nil
	return errors.Join(wrong...)
}

// flowChange says whose flows are to be forgotten.
type flowChange struct {
	mappings []Mapping
	// pod has the addresses that the mappings lead, or led, to.
	pod Pod
	// gone is set if the pod loses all of the mappings: then its flows are those
	// that lead to it. Else they are all that began at the ports.
	gone bool
}

// concerns says whether the mapping is, or was, in the kernel for the family.
func (c flowChange) concerns(f family, m Mapping) bool {
	return f.addrOf(c.pod).IsValid() && (!m.HostIP.IsValid() || f.has(m.HostIP))
}

// forget deletes the entries of connection tracking for UDP and SCTP that
// began at one of the ports of an address of this node. Their next packets go by
// the rules. TCP needs no such help: a new connection begins with a SYN. It is
// called after the rules are in place, or packets in between would bring the old
// entries back.
func (t *tracker) forget(c flowChange) (err error) {
	all := c.mappings
	c.mappings = nil
	for _, m := range all {
		if m.Protocol != TCP {
			c.mappings = append(c.mappings, m)
		}
	}
	if len(c.mappings) == 0 {
		return nil
	}
	conn, err := t.take()
	if err != nil {
		return fmt.Errorf("end flows in connection tracking: open a netlink socket: %w", err)
	}
	defer func() { err = errors.Join(err, t.giveBack(conn, err)) }()
	for _, f := range families() {
		if err := c.forget(conn, t.netns, f); err != nil {
			return fmt.Errorf("end flows in connection tracking: %w", err)
		}
	}
	return nil
}

// forget forgets the flows of a family in the cheapest way that is exact.
func (c flowChange) forget(conn *netlink.Conn, netns int, f family) error {
	// Kernels up to 6.18 at least have it the wrong way round when they compare IPv6
	// addresses with a filter: all others match.
	if f.any.Is4() {
		filters, err := c.filters(netns, f)
		if err != nil {
			return err
		}
		if len(filters) <= maxFlushes && flushFlows(conn, filters) == nil {
			return nil
		}
		// There are too many to go one by one, or the kernel is older than 6.8, which
		// refuses. Listing works everywhere, and fails where something else is wrong.
	}
	return c.listAndForget(conn, netns, f)
}

// flowFilter says which entries are meant.
type flowFilter struct {
	family          byte
	original, reply *tuple
}

// tuple is one direction of a flow; fields with the zero value don't count.
type tuple struct {
	protocol         Protocol
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

// filters describe the flows of the change: one filter or more for each mapping.
// When there are more than are of use, it stops.
func (c flowChange) filters(netns int, f family) ([]flowFilter, error) {
	var filters []flowFilter
	locals := localAddresses{netns: netns, known: make(map[netip.Addr]bool)}
	for _, m := range c.mappings {
		if !c.concerns(f, m) {
			continue
		}
		original := tuple{protocol: m.Protocol, dstPort: m.HostPort}
		if c.gone {
			reply := tuple{protocol: m.Protocol, src: f.addrOf(c.pod), srcPort: m.ContainerPort}
			filters = append(filters, flowFilter{f.nfproto, &original, &reply})
		} else {
			hosts, err := locals.of(f, m)
			if err != nil {
				return nil, err
			}
			for _, host := range hosts {
				to := original
				to.dst = host
				filters = append(filters, flowFilter{f.nfproto, &to, nil})
			}
		}
		if len(filters) > maxFlushes {
			break
		}
	}
	return filters, nil
}

// flushFlows deletes what the filters are for, which kernels do since 6.8. Older
// ones refuse an incomplete tuple.
func flushFlows(conn *netlink.Conn, filters []flowFilter) error {
	for _, filter := range filters {
		body, err := filter.encode()
		if err != nil {
			return err
		}
		if _, err := conn.Execute(ctMessage(ctMsgDelete, netlink.Acknowledge, filter.family, body)); err != nil {
			return err
		}
	}
	return nil
}

// encode gives the attributes of the filter: the tuples, and CTA_FILTER, which says
// what of them counts.
func (f flowFilter) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	var originalFlags, replyFlags uint32
	if f.original != nil {
		originalFlags = f.original.encode(e, ctaTupleOrig, f.family)
	}
	if f.reply != nil {
		replyFlags = f.reply.encode(e, ctaTupleReply, f.family)
	}
	e.Nested(ctaFilter, func(e *netlink.AttributeEncoder) error {
		if originalFlags != 0 {
			e.Uint32(ctaFilterOrigFlags, originalFlags)
		}
		if replyFlags != 0 {
			e.Uint32(ctaFilterReplyFlags, replyFlags)
		}
		return nil
	})
	return e.Encode()
}

func (t *tuple) encode(e *netlink.AttributeEncoder, kind uint16, family byte) (flags uint32) {
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if family == unix.AF_INET6 {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	e.Nested(kind, func(e *netlink.AttributeEncoder) error {
		if t.src.IsValid() || t.dst.IsValid() {
			e.Nested(ctaTupleIP, func(e *netlink.AttributeEncoder) error {
				if t.src.IsValid() {
					e.Bytes(src, t.src.AsSlice())
				}
				if t.dst.IsValid() {
					e.Bytes(dst, t.dst.AsSlice())
				}
				return nil
			})
		}
		e.Nested(ctaTupleProto, func(e *netlink.AttributeEncoder) error {
			e.Uint8(ctaProtoNum, t.protocol.number())
			e.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, t.srcPort))
			e.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, t.dstPort))
			return nil
		})
		return nil
	})
	flags = ctFilterProtoNum
	for flag, set := range map[uint32]bool{
		ctFilterIPSrc: t.src.IsValid(), ctFilterIPDst: t.dst.IsValid(),
		ctFilterSrcPort: t.srcPort != 0, ctFilterDstPort: t.dstPort != 0,
	} {
		if set {
			flags |= flag
		}
	}
	return flags
}
