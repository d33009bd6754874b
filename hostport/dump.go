package hostport

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

// errInterrupted says that somebody changed the ruleset while it was read.
var errInterrupted = errors.New("the ruleset changed while it was read")

// dumpTries is how often a dump is begun again that a change has cut across.
const dumpTries = 5

const dumpInterrupted = netlink.HeaderFlags(unix.NLM_F_DUMP_INTR)

// ask sends one question about nftables and returns the answers. What is asked
// about and not there is an error that is unix.ENOENT.
func (n *nft) ask(message, flags int, attributes []netlink.Attribute) ([]netlink.Message, error) {
	if err := n.open(); err != nil {
		return nil, err
	}
	body, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, fmt.Errorf("put a question to nftables together: %w", err)
	}
	if err := n.raw.SetDeadline(time.Now().Add(kernelPatience)); err != nil {
		return nil, fmt.Errorf("set a netlink deadline: %w", err)
	}
	// struct nfgenmsg: family, version, resource.
	header := []byte{byte(nftables.TableFamilyINet), unix.NFNETLINK_V0, 0, 0}
	replies, err := n.raw.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message),
			Flags: netlink.Request | netlink.HeaderFlags(flags),
		},
		Data: append(header, body...),
	})
	if err != nil {
		return nil, fmt.Errorf("read the nftables ruleset: %w", err)
	}
	for _, r := range replies {
		if r.Header.Flags&dumpInterrupted != 0 {
			return nil, errInterrupted
		}
		if len(r.Data) < len(header) {
			return nil, fmt.Errorf("read the nftables ruleset: an answer of %d bytes", len(r.Data))
		}
	}
	return replies, nil
}

// dump asks until the answer is of one piece. After any other error than that
// something isn't there, the socket is given up.
func (n *nft) dump(message int, attributes ...netlink.Attribute) (replies []netlink.Message, err error) {
	for range dumpTries {
		replies, err = n.ask(message, unix.NLM_F_DUMP, attributes)
		if !errors.Is(err, errInterrupted) {
			break
		}
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return replies, err
	}
	return nil, errors.Join(explain(err), n.close())
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

// intact says whether table, sets, chains and rules are there as they should be;
// if not, why.
func (n *nft) intact() (why string, err error) {
	checks := []func() (string, error){n.tableIntact, n.setsIntact, n.chainsIntact, n.rulesIntact}
	for _, check := range checks {
		why, err := check()
		if errors.Is(err, unix.ENOENT) {
			return "the table is gone", nil
		}
		if err != nil || why != "" {
			return why, err
		}
	}
	return "", nil
}

func (n *nft) tableIntact() (string, error) {
	replies, err := n.ask(unix.NFT_MSG_GETTABLE, 0, []netlink.Attribute{attribute(unix.NFTA_TABLE_NAME, tableName)})
	if err != nil {
		if !errors.Is(err, unix.ENOENT) {
			err = errors.Join(explain(err), n.close())
		}
		return "", err
	}
	for _, r := range replies {
		a, err := attributes(r.Data[4:])
		if err != nil {
			return "", err
		}
		if number(a[unix.NFTA_TABLE_FLAGS]) != 0 { // such as dormant
			return "the table has flags", nil
		}
	}
	return "", nil
}

func (n *nft) setsIntact() (string, error) {
	want := make(map[string][3]uint32)
	for _, s := range n.layout.sets {
		flags := uint32(0)
		if s.IsMap {
			flags = unix.NFT_SET_MAP
		}
		want[s.Name] = [3]uint32{flags, s.KeyType.GetNFTMagic(), s.DataType.GetNFTMagic()}
	}
	got := make(map[string][3]uint32)
	replies, err := n.dump(unix.NFT_MSG_GETSET, attribute(unix.NFTA_SET_TABLE, tableName))
	if err != nil {
		return "", err
	}
	for _, r := range replies {
		a, err := attributes(r.Data[4:])
		if err != nil {
			return "", err
		}
		got[text(a[unix.NFTA_SET_NAME])] = [3]uint32{
			number(a[unix.NFTA_SET_FLAGS]), number(a[unix.NFTA_SET_KEY_TYPE]), number(a[unix.NFTA_SET_DATA_TYPE]),
		}
	}
	return difference("set", want, got), nil
}

// hook is what a base chain hangs on.
type hook struct {
	kind                      string
	number, priority, accepts uint32
}

func (n *nft) chainsIntact() (string, error) {
	want := make(map[string]hook)
	for _, c := range n.layout.chains {
		if c.Hooknum == nil {
			want[c.Name] = hook{}
			continue
		}
		want[c.Name] = hook{string(c.Type), uint32(*c.Hooknum), uint32(*c.Priority), uint32(*c.Policy)}
	}
	got := make(map[string]hook)
	// The kernel lists the chains of all tables of the family here.
	replies, err := n.dump(unix.NFT_MSG_GETCHAIN)
	if err != nil {
		return "", err
	}
	for _, r := range replies {
		a, err := attributes(r.Data[4:])
		if err != nil {
			return "", err
		}
		if text(a[unix.NFTA_CHAIN_TABLE]) != tableName {
			continue
		}
		h, err := attributes(a[unix.NFTA_CHAIN_HOOK])
		if err != nil {
			return "", err
		}
		got[text(a[unix.NFTA_CHAIN_NAME])] = hook{
			text(a[unix.NFTA_CHAIN_TYPE]), number(h[unix.NFTA_HOOK_HOOKNUM]),
			number(h[unix.NFTA_HOOK_PRIORITY]), number(a[unix.NFTA_CHAIN_POLICY]),
		}
	}
	return difference("chain", want, got), nil
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
			return fmt.Sprintf("%s %.64q is not ours", kind, name)
		}
	}
	return ""
}

func (n *nft) rulesIntact() (string, error) {
	for _, chain := range n.layout.chains {
		replies, err := n.dump(unix.NFT_MSG_GETRULE,
			attribute(unix.NFTA_RULE_TABLE, tableName), attribute(unix.NFTA_RULE_CHAIN, chain.Name))
		if err != nil {
			return "", err
		}
		want := n.layout.rules[chain.Name]
		same := len(replies) == len(want)
		for i := 0; same && i < len(want); i++ {
			a, err := attributes(replies[i].Data[4:])
			if err != nil {
				return "", err
			}
			same = string(a[unix.NFTA_RULE_USERDATA]) == string(want[i].UserData)
		}
		if !same {
			return fmt.Sprintf("the rules of chain %s have changed", chain.Name), nil
		}
	}
	return "", nil
}

// elements reads what is in all sets.
func (n *nft) elements() (map[elemKey]element, error) {
	all := make(map[elemKey]element)
	for _, s := range n.layout.sets {
		if err := n.readSet(s.Name, all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// readSet reads what is in one set. The error is unix.ENOENT if there is none of
// that name.
func (n *nft) readSet(set string, into map[elemKey]element) error {
	replies, err := n.dump(unix.NFT_MSG_GETSETELEM,
		attribute(unix.NFTA_SET_ELEM_LIST_TABLE, tableName), attribute(unix.NFTA_SET_ELEM_LIST_SET, set))
	if err != nil {
		return err
	}
	for _, r := range replies {
		if err := readElements(r.Data[4:], set, into); err != nil {
			return err
		}
	}
	return nil
}

func readElements(data []byte, set string, found map[elemKey]element) error {
	return eachAttribute(data, func(kind uint16, list []byte) error {
		if kind != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return nil
		}
		return eachAttribute(list, func(_ uint16, item []byte) error {
			e := element{elemKey: elemKey{set: set}}
			if err := eachAttribute(item, e.read); err != nil {
				return err
			}
			found[e.elemKey] = e
			return nil
		})
	})
}

// read takes one attribute of an element.
func (e *element) read(kind uint16, value []byte) error {
	data := func(into *string) error {
		return eachAttribute(value, func(kind uint16, value []byte) error {
			if kind == unix.NFTA_DATA_VALUE {
				*into = string(value)
			}
			return nil
		})
	}
	switch kind {
	case unix.NFTA_SET_ELEM_KEY:
		return data(&e.key)
	case unix.NFTA_SET_ELEM_DATA:
		return data(&e.val)
	case unix.NFTA_SET_ELEM_USERDATA:
		e.comment = commentIn(value)
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
