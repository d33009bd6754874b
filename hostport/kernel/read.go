package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftMessage is a request about nftables' inet tables.
func nftMessage(message int, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message),
			Flags: netlink.Request,
		},
		Data: append([]byte{byte(nftables.TableFamilyINet), unix.NFNETLINK_V0, 0, 0}, body...),
	}
}

// dump reads a list of nftables and returns the attributes of each answer. The
// error is unix.ENOENT if what is asked about does not exist. After any other
// error the socket is closed.
func (c *tableConn) dump(message int, about ...netlink.Attribute) ([][]byte, error) {
	if err := c.open(); err != nil {
		return nil, err
	}
	body, err := netlink.MarshalAttributes(about)
	if err == nil {
		err = c.raw.SetDeadline(time.Now().Add(patience))
	}
	var replies [][]byte
	if err == nil {
		replies, err = collect(c.raw, nftMessage(message, body), nfgenmsgLen)
	}
	for i := range replies {
		replies[i] = replies[i][nfgenmsgLen:]
	}
	if err == nil {
		return replies, nil
	}
	err = fmt.Errorf("read nftables table inet %s: %w", c.layout.name, explain(err))
	if errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	return nil, errors.Join(err, c.close())
}

func attribute(kind uint16, value string) netlink.Attribute {
	return netlink.Attribute{Type: kind, Data: []byte(value + "\x00")}
}

// eachAttribute walks netlink attributes. There may be tens of thousands.
func eachAttribute(data []byte, visit func(kind uint16, value []byte) error) error {
	const header = 4
	for len(data) > 0 {
		if len(data) < header {
			return errors.New("read an answer of nftables: half an attribute")
		}
		length := int(binary.NativeEndian.Uint16(data))
		if length < header || length > len(data) {
			return fmt.Errorf("read an answer of nftables: an attribute of %d bytes in %d", length, len(data))
		}
		kind := binary.NativeEndian.Uint16(data[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := visit(kind, data[header:length]); err != nil {
			return err
		}
		data = data[min((length+3)&^3, len(data)):]
	}
	return nil
}

// attributes gives the attributes of an answer by their type.
func attributes(data []byte) (map[uint16][]byte, error) {
	found := make(map[uint16][]byte)
	err := eachAttribute(data, func(kind uint16, value []byte) error {
		found[kind] = value
		return nil
	})
	return found, err
}

func text(b []byte) string { return string(trimNUL(b)) }

func trimNUL(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] == 0 {
		return b[:len(b)-1]
	}
	return b
}

func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// Intact compares the table, its sets, chains and rules with the layout, and says
// what differs; empty if nothing does. Elements are not compared.
func (k *Kernel) Intact() (why string, err error) {
	c := &k.table
	checks := []func() (string, error){c.tableIntact, c.setsIntact, c.chainsIntact, c.rulesIntact}
	for _, check := range checks {
		why, err := check()
		if errors.Is(err, unix.ENOENT) {
			return "the table is gone", nil
		}
		if err != nil {
			return "", err
		}
		if why != "" {
			return why, nil
		}
	}
	return "", nil
}

// list reads a list of nftables and visits the attributes of each answer.
func (c *tableConn) list(message int, visit func(map[uint16][]byte) error, about ...netlink.Attribute) error {
	replies, err := c.dump(message, about...)
	for _, r := range replies {
		if err != nil {
			break
		}
		var a map[uint16][]byte
		if a, err = attributes(r); err == nil {
			err = visit(a)
		}
	}
	return err
}

func (c *tableConn) tableIntact() (why string, err error) {
	why = "the table is gone"
	err = c.list(unix.NFT_MSG_GETTABLE, func(a map[uint16][]byte) error {
		if text(a[unix.NFTA_TABLE_NAME]) != c.layout.name {
			return nil
		}
		why = ""
		if number(a[unix.NFTA_TABLE_FLAGS]) != 0 { // such as dormant
			why = "the table has flags"
		}
		return nil
	})
	return why, err
}

func (c *tableConn) setsIntact() (string, error) {
	want := make(map[string][3]uint32)
	for _, s := range c.layout.sets {
		flags, data := uint32(0), s.DataType.GetNFTMagic()
		if s.IsMap {
			flags = unix.NFT_SET_MAP
		}
		if s.DataType == nftables.TypeVerdict {
			data = unix.NFT_DATA_VERDICT
		}
		want[s.Name] = [3]uint32{flags, s.KeyType.GetNFTMagic(), data}
	}
	got := make(map[string][3]uint32)
	err := c.list(unix.NFT_MSG_GETSET, func(a map[uint16][]byte) error {
		got[text(a[unix.NFTA_SET_NAME])] = [3]uint32{
			number(a[unix.NFTA_SET_FLAGS]), number(a[unix.NFTA_SET_KEY_TYPE]), number(a[unix.NFTA_SET_DATA_TYPE]),
		}
		return nil
	}, attribute(unix.NFTA_SET_TABLE, c.layout.name))
	return difference("set", want, got), err
}

// hook is what a base chain hangs on.
type hook struct {
	kind                      string
	number, priority, accepts uint32
}

func (c *tableConn) chainsIntact() (string, error) {
	want := make(map[string]hook)
	for _, c := range c.layout.chains {
		if c.Hooknum == nil {
			want[c.Name] = hook{}
			continue
		}
		want[c.Name] = hook{string(c.Type), uint32(*c.Hooknum), uint32(*c.Priority), uint32(*c.Policy)}
	}
	got, err := c.chains()
	if err != nil {
		return "", err
	}
	for name := range got {
		if b, _ := c.layout.branchOf(name); b != nil {
			want[name] = hook{} // which of them there must be, the elements say
		}
	}
	return difference("chain", want, got), nil
}

// chains reads the chains of the table.
func (c *tableConn) chains() (map[string]hook, error) {
	got := make(map[string]hook)
	// The kernel lists the chains of all tables of the family here.
	err := c.list(unix.NFT_MSG_GETCHAIN, func(a map[uint16][]byte) error {
		if text(a[unix.NFTA_CHAIN_TABLE]) != c.layout.name {
			return nil
		}
		h, err := attributes(a[unix.NFTA_CHAIN_HOOK])
		got[text(a[unix.NFTA_CHAIN_NAME])] = hook{
			text(a[unix.NFTA_CHAIN_TYPE]), number(h[unix.NFTA_HOOK_HOOKNUM]),
			number(h[unix.NFTA_HOOK_PRIORITY]), number(a[unix.NFTA_CHAIN_POLICY]),
		}
		return err
	})
	return got, err
}

// difference names one entry that is wrong, too much or missing.
func difference[T comparable](kind string, want, got map[string]T) string {
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			return fmt.Sprintf("%s %s is gone", kind, name)
		}
		if g != w {
			return fmt.Sprintf("%s %s has changed", kind, name)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			return fmt.Sprintf("%s %.64q does not belong there", kind, name)
		}
	}
	return ""
}

func (c *tableConn) rulesIntact() (string, error) {
	chains, err := c.chains()
	if err != nil {
		return "", err
	}
	for chain := range chains {
		replies, err := c.dump(unix.NFT_MSG_GETRULE,
			attribute(unix.NFTA_RULE_TABLE, c.layout.name), attribute(unix.NFTA_RULE_CHAIN, chain))
		if err != nil {
			return "", err
		}
		want := c.layout.rulesOf(chain)
		same := len(replies) == len(want)
		for i := 0; same && i < len(want); i++ {
			a, err := attributes(replies[i])
			if err != nil {
				return "", err
			}
			same = string(a[unix.NFTA_RULE_USERDATA]) == string(want[i].UserData)
		}
		if !same {
			return fmt.Sprintf("the rules of chain %s have changed", chain), nil
		}
	}
	return "", nil
}

// Elements reads the elements of the named sets of the table, or of all that the
// layout has, chains of branches included, if none is named. The error is unix.ENOENT if the table or one of the
// sets does not exist.
func (k *Kernel) Elements(sets ...string) (map[Key]Element, error) {
	all := make(map[Key]Element)
	if len(sets) == 0 {
		if err := k.table.branchElements(all); err != nil {
			return nil, err
		}
		for _, s := range k.table.layout.sets {
			sets = append(sets, s.Name)
		}
	}
	for _, set := range sets {
		replies, err := k.table.dump(unix.NFT_MSG_GETSETELEM,
			attribute(unix.NFTA_SET_ELEM_LIST_TABLE, k.table.layout.name), attribute(unix.NFTA_SET_ELEM_LIST_SET, set))
		if err != nil {
			return nil, err
		}
		for _, r := range replies {
			if err := readElements(r, set, all); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

func readElements(data []byte, set string, found map[Key]Element) error {
	return eachAttribute(data, func(kind uint16, list []byte) error {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return eachAttribute(list, func(_ uint16, item []byte) error {
			e := Element{Key: Key{Set: set}}
			if err := eachAttribute(item, e.read); err != nil {
				return err
			}
			found[e.Key] = e
			return nil
		})
	})
}

// read takes one attribute of an element.
func (e *Element) read(kind uint16, value []byte) error {
	data := func(into *string) error {
		return eachAttribute(value, func(kind uint16, value []byte) error {
			switch kind {
			case unix.NFTA_DATA_VALUE:
				*into = string(value)
			case unix.NFTA_DATA_VERDICT:
				return e.readVerdict(value)
			}
			return nil
		})
	}
	switch kind {
	case unix.NFTA_SET_ELEM_KEY:
		return data(&e.Bytes)
	case unix.NFTA_SET_ELEM_DATA:
		return data(&e.Value)
	case unix.NFTA_SET_ELEM_USERDATA:
		e.Comment = commentIn(value)
	}
	return nil
}

// commentIn finds the comment in user data, which may be anybody's bytes.
func commentIn(udata []byte) string {
	for len(udata) >= 2 && len(udata) >= 2+int(udata[1]) {
		value := udata[2 : 2+int(udata[1])]
		if userdata.Type(udata[0]) == userdata.NFTNL_UDATA_SET_ELEM_COMMENT {
			return text(value)
		}
		udata = udata[2+len(value):]
	}
	return ""
}
