package history

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableName is the table that is watched.
const tableName = "crinet"

// The protocols of hostPorts (IANA).
const (
	protocolTCP, protocolUDP, protocolSCTP = 6, 17, 132
)

// portKey is how a hostPort is written.
func portKey(protocol byte, port uint16) string {
	name := fmt.Sprint(protocol)
	switch protocol {
	case protocolTCP:
		name = "tcp"
	case protocolUDP:
		name = "udp"
	case protocolSCTP:
		name = "sctp"
	}
	return fmt.Sprintf("%s/%d", name, port)
}

// nfgenmsgLen is the length of a struct nfgenmsg.
const nfgenmsgLen = 4

// netfilter adds a message to the open transaction, or records it at its end.
func (w *Watcher) netfilter(m syscall.NetlinkMessage) {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < nfgenmsgLen {
		return
	}
	attributes := m.Data[nfgenmsgLen:]
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWGEN:
		if t := w.open; t.Reset || len(t.Removed)+len(t.Added) > 0 {
			w.open = Table{}
			w.recorder.Add(Event{Kind: TableChange, Table: &t})
		}
	case unix.NFT_MSG_DELTABLE:
		if attributeOf(attributes, unix.NFTA_TABLE_NAME) == tableName {
			w.open = Table{Reset: true}
		}
	case unix.NFT_MSG_NEWSETELEM:
		w.open.Added = append(w.open.Added, elementsOf(attributes)...)
	case unix.NFT_MSG_DELSETELEM:
		w.open.Removed = append(w.open.Removed, elementsOf(attributes)...)
	}
}

func attributeOf(data []byte, kind uint16) string {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == kind {
			return d.String()
		}
	}
	return ""
}

// elementsOf decodes the elements of a message about the table.
func elementsOf(data []byte) (elements []Element) {
	if attributeOf(data, unix.NFTA_SET_ELEM_LIST_TABLE) != tableName {
		return nil
	}
	set := attributeOf(data, unix.NFTA_SET_ELEM_LIST_SET)
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return nil
	}
	for d.Next() {
		if d.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				list.Nested(func(one *netlink.AttributeDecoder) error {
					elements = append(elements, decodeElement(set, one))
					return nil
				})
			}
			return nil
		})
	}
	return elements
}

func decodeElement(set string, d *netlink.AttributeDecoder) Element {
	e := Element{Set: set}
	var key, value []byte
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			d.Nested(func(data *netlink.AttributeDecoder) error { key = dataOf(data); return nil })
		case unix.NFTA_SET_ELEM_DATA:
			d.Nested(func(data *netlink.AttributeDecoder) error { value = dataOf(data); return nil })
		case unix.NFTA_SET_ELEM_USERDATA:
			e.Comment, _ = userdata.GetString(d.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
			e.Comment = strings.TrimRight(e.Comment, "\x00")
		}
	}
	e.Key = hex.EncodeToString(key)
	if !strings.HasPrefix(set, "ports") && !strings.HasPrefix(set, "addr_ports") {
		return e
	}
	// Fields of 4 bytes: [address] protocol port, and address port.
	if n := len(key); n >= 8 {
		e.Key = portKey(key[n-8], binary.BigEndian.Uint16(key[n-4:]))
		if n > 8 {
			address, _ := netip.AddrFromSlice(key[:n-8])
			e.Key = address.String() + " " + e.Key
		}
	}
	if n := len(value); n >= 8 {
		address, _ := netip.AddrFromSlice(value[:n-4])
		e.Address, e.Port = address.String(), binary.BigEndian.Uint16(value[n-4:])
	}
	return e
}

func dataOf(d *netlink.AttributeDecoder) []byte {
	for d.Next() {
		if d.Type() == unix.NFTA_DATA_VALUE {
			return d.Bytes()
		}
	}
	return nil
}
