package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Flow is an entry of connection tracking.
type Flow struct {
	Protocol byte       // as in the IP header
	Dst      netip.Addr // where the first packet went
	Port     uint16     // and to which port
	ID       uint32     // the kernel's number of the entry
	// name holds the attributes by which the kernel knows the entry.
	name []netlink.Attribute
}

// FlowQuery selects the entries of a family and protocol whose first packet went
// to a port; 0 is any port.
type FlowQuery struct {
	Family, Protocol byte
	Port             uint16
}

// DeleteFlowsIf deletes the entries that the query selects and match accepts. It
// walks the kernel's table once, which takes some milliseconds, and works on
// every kernel. Entries are looked at as they arrive: only the names of those to
// be deleted are kept.
func (k *Kernel) DeleteFlowsIf(q FlowQuery, match func(Flow) (bool, error)) error {
	return k.flows.with(func(conn *netlink.Conn) error {
		var names [][]netlink.Attribute
		err := ErrInterrupted
		for try := 0; try < dumpTries && errors.Is(err, ErrInterrupted); try++ {
			names = nil
			err = eachFlow(conn, q, func(f Flow) error {
				matches, err := match(f)
				if matches {
					names = append(names, f.name)
				}
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("list the flows of protocol %d: %w", q.Protocol, err)
		}
		for _, name := range names {
			if err := deleteFlow(conn, q.Family, name); err != nil {
				return fmt.Errorf("delete a flow of protocol %d: %w", q.Protocol, err)
			}
		}
		return nil
	})
}

// eachFlow lists the entries that the query selects. Kernels before 5.8 ignore the
// filter and list all of the family, so each entry is compared again.
func eachFlow(conn *netlink.Conn, q FlowQuery, visit func(Flow) error) error {
	filter := FlowFilter{Family: q.Family, Original: &Tuple{Protocol: q.Protocol, DstPort: q.Port}}
	body, err := filter.encode()
	if err != nil {
		return err
	}
	return dump(conn, ctMessage(ctMsgGet, 0, q.Family, body), func(data []byte) error {
		if len(data) < nfgenmsgLen {
			return errors.New("the kernel's answer is too short")
		}
		f, err := readFlow(data[nfgenmsgLen:])
		if err != nil || f.Protocol != q.Protocol || q.Port != 0 && f.Port != q.Port {
			return err
		}
		return visit(f)
	})
}

func readFlow(data []byte) (Flow, error) {
	var f Flow
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
		case ctaID:
			f.keep(d, 0)
			f.ID = d.Uint32()
		case ctaZone:
			f.keep(d, 0)
		}
	}
	return f, d.Err()
}

// keep adds an attribute to the flow's name.
func (f *Flow) keep(d *netlink.AttributeDecoder, flags uint16) {
	f.name = append(f.name, netlink.Attribute{Type: d.Type() | flags, Data: d.Bytes()})
}

func (f *Flow) readTuple(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case ctaTupleIP:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if t := d.Type(); t == ctaIPv4Dst || t == ctaIPv6Dst {
						f.Dst, _ = netip.AddrFromSlice(d.Bytes())
					}
				}
				return nil
			})
		case ctaTupleProto:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					switch d.Type() {
					case ctaProtoNum:
						f.Protocol = d.Uint8()
					case ctaProtoDstPort:
						f.Port = d.Uint16()
					}
				}
				return nil
			})
		}
	}
	return nil
}

// deleteFlow deletes an entry; it is no error if it has ended by itself.
func deleteFlow(conn *netlink.Conn, family byte, name []netlink.Attribute) error {
	body, err := netlink.MarshalAttributes(name)
	if err != nil {
		return err
	}
	_, err = conn.Execute(ctMessage(ctMsgDelete, netlink.Acknowledge, family, body))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
