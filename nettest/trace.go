package nettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TraceTable is the table that has the kernel trace packets of a test, for the time
// of one try. It belongs to a socket of the process: with that the kernel removes it.
const TraceTable = "crinet_trace"

const (
	tableOwner = 0x2 // NFT_TABLE_F_OWNER, Linux 5.12
	nftraceAll = 9   // NFNLGRP_NFTRACE
	// traceTail is how long events are awaited after the last answer.
	traceTail = 100 * time.Millisecond
	// maxHops bounds what is kept of a trace.
	maxHops = 10_000
)

// The chains of the trace's table. Those at a hook's begin and end have no rules:
// a traced packet that gets there is seen.
const (
	early = -350 // before connection tracking
	late  = 350  // after source NAT
)

// traceFilter says which packets are traced: from or to these addresses, and to
// these ports.
type traceFilter struct {
	addrs []netip.Addr
	ports []uint16
}

// trace is what the kernel said of the traced packets, in order.
type trace struct {
	hops        []hop
	unavailable error // why there is none
}

// tracer traces until stop.
type tracer struct {
	node   *Space
	tables *nftables.Conn
	events *netlink.Conn

	mu   sync.Mutex // guards what follows
	hops []hop
	done chan struct{} // closed when no events are read any more
}

// startTrace begins a trace in a namespace.
func startTrace(node *Space, filter traceFilter) (t *tracer, err error) {
	t = &tracer{node: node, done: make(chan struct{})}
	if t.events, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: node.fd()}); err != nil {
		return nil, fmt.Errorf("trace packets: %w", err)
	}
	if err := t.events.JoinGroup(nftraceAll); err != nil {
		return nil, errors.Join(fmt.Errorf("trace packets: %w", err), t.events.Close())
	}
	var socket *netlink.Conn // that the tables belong to
	t.tables, err = nftables.New(nftables.WithNetNSFd(node.fd()), nftables.AsLasting(),
		nftables.WithSockOptions(func(c *netlink.Conn) error { socket = c; return nil }))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace packets: %w", err), t.events.Close())
	}
	if err := t.add(socket, nftables.TableFamilyINet, filter); err != nil {
		return nil, errors.Join(fmt.Errorf("trace packets: make the table %s: %w", TraceTable, err), t.tables.CloseLasting(), t.events.Close())
	}
	_ = t.add(socket, nftables.TableFamilyBridge, filter) // a kernel without bridges' tables has no rules there either
	go t.read()
	return t, nil
}

// ownTable makes a table that belongs to a socket. The library leaves a table's flags out.
func ownTable(socket *netlink.Conn, family nftables.TableFamily) error {
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(TraceTable + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner)},
	})
	if err != nil {
		return err
	}
	batch := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES} // struct nfgenmsg
	_, err = socket.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: batch},
		{
			Header: netlink.Header{
				Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
			},
			Data: append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, attributes...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: batch},
	})
	if err != nil {
		return err
	}
	_, err = socket.Receive() // the acknowledgement
	return err
}

// stop waits a moment for the last events, removes the table and returns the trace.
func (t *tracer) stop() *trace {
	time.Sleep(traceTail)
	_ = t.tables.CloseLasting() // the kernel removes the table with the socket
	_ = t.events.Close()        // ends read
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	nameLinks(t.node, t.hops)
	return &trace{hops: t.hops}
}

// read reads events until the socket is closed.
func (t *tracer) read() {
	defer close(t.done)
	for {
		messages, err := t.events.Receive()
		if err != nil {
			if errors.Is(err, unix.ENOBUFS) {
				continue // some are lost
			}
			return
		}
		t.mu.Lock()
		for _, m := range messages {
			if h, ok := parseHop(m); ok && len(t.hops) < maxHops {
				t.hops = append(t.hops, h)
			}
		}
		t.mu.Unlock()
	}
}

// add makes the table of a family.
func (t *tracer) add(socket *netlink.Conn, family nftables.TableFamily, filter traceFilter) error {
	if err := ownTable(socket, family); err != nil {
		return err
	}
	table := &nftables.Table{Name: TraceTable, Family: family}
	accept := nftables.ChainPolicyAccept
	chain := func(name string, hook *nftables.ChainHook, priority int) *nftables.Chain {
		return t.tables.AddChain(&nftables.Chain{
			Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(nftables.ChainPriority(priority)), Policy: &accept,
		})
	}
	marking := []*nftables.Chain{chain("prerouting", nftables.ChainHookPrerouting, early)}
	chain("prerouting_end", nftables.ChainHookPrerouting, late)
	if family == nftables.TableFamilyINet {
		marking = append(marking, chain("output", nftables.ChainHookOutput, early))
		chain("output_end", nftables.ChainHookOutput, late)
	}
	chain("input", nftables.ChainHookInput, early)
	chain("input_end", nftables.ChainHookInput, late)
	chain("forward", nftables.ChainHookForward, early)
	chain("forward_end", nftables.ChainHookForward, late)
	chain("postrouting", nftables.ChainHookPostrouting, early)
	chain("postrouting_end", nftables.ChainHookPostrouting, late)
	for _, c := range marking {
		for _, exprs := range filter.rules(family) {
			t.tables.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: exprs})
		}
	}
	return t.tables.Flush()
}

// rules are the expressions that turn tracing on for a filter's packets.
func (f traceFilter) rules(family nftables.TableFamily) (rules [][]expr.Any) {
	for _, addr := range f.addrs {
		source, size := uint32(12), uint32(4) // of the IPv4 header
		if addr.Is6() {
			source, size = 8, 16
		}
		for _, offset := range []uint32{source, source + size} {
			rules = append(rules, append(ofFamily(family, addr),
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr.AsSlice()}))
		}
	}
	if family == nftables.TableFamilyINet {
		for _, port := range f.ports {
			for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				rules = append(rules, []expr.Any{
					&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
					&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
				})
			}
		}
	}
	for i := range rules {
		rules[i] = append(rules[i],
			&expr.Immediate{Register: 1, Data: []byte{1}},
			&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: 1})
	}
	return rules
}

// ofFamily matches packets of an address's family.
func ofFamily(family nftables.TableFamily, addr netip.Addr) []expr.Any {
	if family == nftables.TableFamilyBridge {
		etherType := uint16(unix.ETH_P_IP)
		if addr.Is6() {
			etherType = unix.ETH_P_IPV6
		}
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, etherType)},
		}
	}
	proto := byte(unix.NFPROTO_IPV4)
	if addr.Is6() {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}
