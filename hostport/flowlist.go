package hostport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// flow is an entry of connection tracking, as far as we care.
type flow struct {
	protocol byte
	dst      netip.Addr // where the first packet went
	port     uint16     // and to which port
	// name holds the attributes by which the kernel knows the entry.
	name []netlink.Attribute
}

// listAndForget finds the flows by listing, with a walk of the kernel's table that takes
// some milliseconds for each protocol, and deletes them one by one.
func (c flowChange) listAndForget(conn *netlink.Conn, netns int, family family) error {
	byPort := make(map[portKey][]Mapping)
	for _, m := range c.mappings {
		byPort[keyOf(m)] = append(byPort[keyOf(m)], m)
	}
	locals := localAddresses{netns: netns, known: make(map[netip.Addr]bool)}
	for _, q := range c.questions(family) {
		flows, err := dumpFlows(conn, q)
		if err != nil {
			return fmt.Errorf("list the %s flows: %w", q.protocol, err)
		}
		for _, f := range flows {
			if f.protocol != q.protocol.number() || !covered(byPort[portKey{q.protocol, f.port}], f.dst) {
				continue
			}
			local, err := locals.has(f.dst)
			if err != nil {
				return err
			}
			if !local {
				continue
			}
			if err := deleteFlow(conn, q.family, f); err != nil {
				return fmt.Errorf("delete the %s flow to %s port %d: %w", q.protocol, f.dst, f.port, err)
			}
		}
	}
	return nil
}

func covered(mappings []Mapping, dst netip.Addr) bool {
	for _, m := range mappings {
		if overlap(m.HostIP, dst) {
			return true
		}
	}
	return false
}

// localAddresses knows which addresses are the node's.
type localAddresses struct {
	netns int
	known map[netip.Addr]bool
	all   []netip.Addr
}

func (l *localAddresses) has(addr netip.Addr) (bool, error) {
	if local, ok := l.known[addr]; ok {
		return local, nil
	}
	err := withRtnl(l.netns, func(r *rtnl) error {
		way, err := r.routeTo(addr)
		if err != nil && unroutable(err) {
			return nil
		}
		l.known[addr] = way.local
		return err
	})
	return l.known[addr], err
}

// of lists the node's addresses of the family that the mapping is for.
func (l *localAddresses) of(f family, m Mapping) ([]netip.Addr, error) {
	if m.HostIP.IsValid() && !m.HostIP.IsUnspecified() {
		local, err := l.has(m.HostIP)
		if err != nil || !local {
			return nil, err
		}
		return []netip.Addr{m.HostIP}, nil
	}
	if l.all == nil {
		if err := withRtnl(l.netns, func(r *rtnl) (err error) {
			l.all, err = r.addresses()
			return err
		}); err != nil {
			return nil, err
		}
	}
	var ours []netip.Addr
	for _, addr := range l.all {
		if f.has(addr) {
			ours = append(ours, addr)
		}
	}
	return ours, nil
}

// question is one listing of flows: of a family and protocol, and of one port
// unless port is 0. The kernel walks its table once for each.
type question struct {
	family   byte
	protocol Protocol
	port     uint16
}

// questions asks for one port where the protocol has just one, and else for all.
func (c flowChange) questions(f family) []question {
	ports := make(map[Protocol]uint16)
	for _, m := range c.mappings {
		if !c.concerns(f, m) {
			continue
		}
		if port, ok := ports[m.Protocol]; ok && port != m.HostPort {
			ports[m.Protocol] = 0
		} else {
			ports[m.Protocol] = m.HostPort
		}
	}
	asked := make([]question, 0, len(ports))
	for p, port := range ports {
		asked = append(asked, question{f.nfproto, p, port})
	}
	return asked
}

// dumpFlows lists flows. Kernels before 5.8 don't know the filter and list all of
// the family, so callers look again.
func dumpFlows(conn *netlink.Conn, q question) ([]flow, error) {
	body, err := flowFilter{family: q.family, original: &tuple{protocol: q.protocol, dstPort: q.port}}.encode()
	if err != nil {
		return nil, err
	}
	replies, err := conn.Execute(ctMessage(ctMsgGet, netlink.Dump, q.family, body))
	if err != nil {
		return nil, err
	}
	flows := make([]flow, 0, len(replies))
	for _, r := range replies {
		if len(r.Data) < 4 {
			return nil, errors.New("the kernel's answer is too short")
		}
		f, err := readFlow(r.Data[4:])
		if err != nil {
			return nil, err
		}
		flows = append(flows, f)
	}
	return flows, nil
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

func readFlow(data []byte) (flow, error) {
	var f flow
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return f, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case ctaTupleOrig:
			f.keep(d, unix.NLA_F_NESTED)
			d.Nested(f.readTuple)
		case ctaID, ctaZone:
			f.keep(d, 0)
		}
	}
	return f, d.Err()
}

// keep remembers an attribute as part of the flow's name.
func (f *flow) keep(d *netlink.AttributeDecoder, flags uint16) {
	f.name = append(f.name, netlink.Attribute{Type: d.Type() | flags, Data: d.Bytes()})
}

func (f *flow) readTuple(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case ctaTupleIP:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if t := d.Type(); t == ctaIPv4Dst || t == ctaIPv6Dst {
						f.dst, _ = netip.AddrFromSlice(d.Bytes())
					}
				}
				return nil
			})
		case ctaTupleProto:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					switch d.Type() {
					case ctaProtoNum:
						f.protocol = d.Uint8()
					case ctaProtoDstPort:
						f.port = d.Uint16()
					}
				}
				return nil
			})
		}
	}
	return nil
}

// deleteFlow deletes the entry; it is fine if it has ended by itself.
func deleteFlow(conn *netlink.Conn, family byte, f flow) error {
	body, err := netlink.MarshalAttributes(f.name)
	if err != nil {
		return err
	}
	_, err = conn.Execute(ctMessage(ctMsgDelete, netlink.Acknowledge, family, body))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
