package kernel

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

// ErrNoFlows says that the kernel does not give access to connection tracking.
var ErrNoFlows = errors.New("the kernel cannot list or delete connection tracking entries (CONFIG_NF_CT_NETLINK)")

// FlowFilter says which entries of connection tracking are meant. Directions that
// are nil are not compared.
type FlowFilter struct {
	Family          byte
	Original, Reply *Tuple
}

// Tuple is one direction of a flow. Fields with the zero value are not compared.
type Tuple struct {
	Protocol         byte // as in the IP header
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
}

// CheckFlows returns ErrNoFlows if connection tracking entries cannot be deleted.
func (k *Kernel) CheckFlows() error {
	return k.flows.with(func(conn *netlink.Conn) error {
		few := FlowQuery{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, Port: 1}
		return eachFlow(conn, few, func(Flow) error { return nil })
	})
}

// DeleteFlows deletes the entries that match one of the filters, each in 0.2 to
// 0.4 ms. Kernels before 6.8 refuse filters. Kernels up to 6.18 at least compare
// IPv6 addresses the wrong way round: use DeleteFlowsIf for those.
func (k *Kernel) DeleteFlows(filters []FlowFilter) error {
	return k.flows.with(func(conn *netlink.Conn) error {
		for _, filter := range filters {
			body, err := filter.encode()
			if err != nil {
				return err
			}
			if _, err := conn.Execute(ctMessage(ctMsgDelete, netlink.Acknowledge, filter.Family, body)); err != nil {
				return err
			}
		}
		return nil
	})
}

// pool keeps sockets for connection tracking: closing one makes the kernel wait
// until what the last nftables transaction left is freed, ten milliseconds and more.
type pool struct {
	netns int
	mu    sync.Mutex
	idle  []*netlink.Conn // guarded by mu
}

// maxIdle is how many sockets a pool keeps.
const maxIdle = 4

// with runs f with a socket of the pool. A socket on which a request failed is
// closed, since answers may still be under way.
func (p *pool) with(f func(*netlink.Conn) error) error {
	conn, err := p.take()
	if err == nil {
		err = f(conn)
		err = errors.Join(err, p.giveBack(conn, err))
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		// nfnetlink answers EINVAL for a subsystem that it does not have.
		return fmt.Errorf("%w: %w", ErrNoFlows, err)
	}
	return err
}

func (p *pool) take() (*netlink.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return dial(unix.NETLINK_NETFILTER, p.netns)
	}
	conn := p.idle[last]
	p.idle = p.idle[:last]
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (p *pool) giveBack(conn *netlink.Conn, failed error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if failed == nil && len(p.idle) < maxIdle {
		p.idle = append(p.idle, conn)
		return nil
	}
	return conn.Close()
}

func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var wrong []error
	for _, conn := range p.idle {
		wrong = append(wrong, conn.Close())
	}
	p.idle = nil
	return errors.Join(wrong...)
}

func ctMessage(kind int, flags netlink.HeaderFlags, family byte, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	}
}

// encode returns the attributes of the filter: the tuples, and CTA_FILTER, which
// says which of their fields are compared.
func (f FlowFilter) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	var originalFlags, replyFlags uint32
	if f.Original != nil {
		originalFlags = f.Original.encode(e, ctaTupleOrig, f.Family)
	}
	if f.Reply != nil {
		replyFlags = f.Reply.encode(e, ctaTupleReply, f.Family)
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

func (t *Tuple) encode(e *netlink.AttributeEncoder, kind uint16, family byte) (flags uint32) {
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if family == unix.AF_INET6 {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	e.Nested(kind, func(e *netlink.AttributeEncoder) error {
		if t.Src.IsValid() || t.Dst.IsValid() {
			e.Nested(ctaTupleIP, func(e *netlink.AttributeEncoder) error {
				if t.Src.IsValid() {
					e.Bytes(src, t.Src.AsSlice())
				}
				if t.Dst.IsValid() {
					e.Bytes(dst, t.Dst.AsSlice())
				}
				return nil
			})
		}
		e.Nested(ctaTupleProto, func(e *netlink.AttributeEncoder) error {
			e.Uint8(ctaProtoNum, t.Protocol)
			e.Bytes(ctaProtoSrcPort, binary.BigEndian.AppendUint16(nil, t.SrcPort))
			e.Bytes(ctaProtoDstPort, binary.BigEndian.AppendUint16(nil, t.DstPort))
			return nil
		})
		return nil
	})
	flags = ctFilterProtoNum
	for flag, set := range map[uint32]bool{
		ctFilterIPSrc: t.Src.IsValid(), ctFilterIPDst: t.Dst.IsValid(),
		ctFilterSrcPort: t.SrcPort != 0, ctFilterDstPort: t.DstPort != 0,
	} {
		if set {
			flags |= flag
		}
	}
	return flags
}
