package hostport

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

const tableName = "crinet"

// Priorities, after linux/netfilter_ipv4.h. Service rules stand at dstnat, and
// the first translation of a connection wins: ours come after them.
const (
	priorityGuard  = nftables.ChainPriority(-300) // raw: before connection tracking
	priorityDstNAT = nftables.ChainPriority(-100 + 10)
	prioritySrcNAT = nftables.ChainPriority(100)
)

// Registers as nft itself assigns them: 1 to 4 are 16 bytes each, from 8 on they
// are the same memory in pieces of 4 bytes.
const (
	reg1     = 1
	reg32at0 = 8
)

// udataRuleHash is the type of our own entry in a rule's user data, far from
// those of nft (libnftnl, udata.h), which ignores it.
const udataRuleHash userdata.Type = 0xc1

// layout is the table without its elements: what never changes.
type layout struct {
	table  *nftables.Table
	sets   []*nftables.Set
	chains []*nftables.Chain
	rules  map[string][]*nftables.Rule // by chain, in order
}

func newLayout() *layout {
	l := &layout{
		table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet},
		rules: make(map[string][]*nftables.Rule),
	}
	l.addSets()
	l.addBaseChain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityGuard)
	l.addBaseChain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityDstNAT)
	l.addBaseChain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, priorityDstNAT)
	l.addBaseChain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, prioritySrcNAT)
	l.chains = append(l.chains, &nftables.Chain{Name: "hostports", Table: l.table})

	v4, v6 := families()[0], families()[1]
	fromOutside := meta(expr.MetaKeyIIFNAME, expr.CmpOpNeq, ifnameLo())
	l.addRule("guard", "CVE-2020-8558: only the node itself uses 127.0.0.0/8",
		fromOutside, v4.match(), v4.inLoopback(v4.srcOffset()), verdict(expr.VerdictDrop, ""))
	l.addRule("guard", "CVE-2020-8558: only the node itself uses 127.0.0.0/8",
		fromOutside, v4.match(), v4.inLoopback(v4.dstOffset()), verdict(expr.VerdictDrop, ""))

	l.addRule("prerouting", "", localDestination(), verdict(expr.VerdictJump, "hostports"))
	l.addRule("output", "the kernel routes ::1 nowhere but to itself",
		v6.match(), v6.inLoopback(v6.dstOffset()), verdict(expr.VerdictReturn, ""))
	l.addRule("output", "", localDestination(), verdict(expr.VerdictJump, "hostports"))

	for _, f := range families() {
		l.addRule("hostports", "", f.translate(l.set(f.addrPorts), true))
		l.addRule("hostports", "", f.translate(l.set(f.ports), false))
		l.addRule("postrouting", "a pod that reaches itself through its hostPort",
			translated(), f.match(), f.addressPairIn(l.set(f.hairpin)), []expr.Any{&expr.Masq{}})
	}
	// With bridge-nf-call-iptables frames of one bridge come here as bridged, without
	// an input interface, and answers find their way back. Else they are routed.
	l.addRule("postrouting", "pods of a bridge that would answer each other past the node",
		translated(), sameBridge(l.set(setSameBridge)), []expr.Any{&expr.Masq{}})
	l.addRule("postrouting", "127.0.0.0/8 can't leave the node",
		translated(), meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, ifnameLo()),
		v4.match(), v4.inLoopback(v4.srcOffset()), []expr.Any{&expr.Masq{}})
	return l
}

func (l *layout) addSets() {
	types := map[byte]nftables.SetDatatype{2: nftables.TypeIPAddr, 10: nftables.TypeIP6Addr}
	service := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	for _, f := range families() {
		addr := types[f.nfproto]
		target := concat(addr, nftables.TypeInetService)
		l.addSet(&nftables.Set{Name: f.ports, IsMap: true, KeyType: concat(service...), DataType: target})
		l.addSet(&nftables.Set{
			Name: f.addrPorts, IsMap: true, DataType: target,
			KeyType: concat(append([]nftables.SetDatatype{addr}, service...)...),
		})
		l.addSet(&nftables.Set{Name: f.hairpin, KeyType: concat(addr, addr)})
	}
	l.addSet(&nftables.Set{
		Name: setRouteLocalnet, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian,
		Comment: "where crinet switched it on",
	})
	l.addSet(&nftables.Set{Name: setSameBridge, KeyType: concat(nftables.TypeIFName, nftables.TypeIFName)})
}

// concat can't fail: it is given three types at most, and the limit is five.
func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	t, err := nftables.ConcatSetType(types...)
	if err != nil {
		return nftables.TypeInvalid
	}
	return t
}

func (l *layout) addSet(s *nftables.Set) {
	s.Table = l.table
	s.ID = uint32(len(l.sets) + 1) // unique within a transaction
	l.sets = append(l.sets, s)
}

// set returns the set as elements and rules refer to it.
func (l *layout) set(name string) *nftables.Set {
	for _, s := range l.sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func (l *layout) addBaseChain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) {
	accept := nftables.ChainPolicyAccept
	l.chains = append(l.chains, &nftables.Chain{
		Name: name, Table: l.table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept,
	})
}

// addRule appends a rule. Its user data holds the comment for nft and a hash of
// the rule, by which it is known again, whatever form the kernel dumps it in.
func (l *layout) addRule(chain, comment string, parts ...[]expr.Any) {
	rule := &nftables.Rule{Table: l.table}
	for _, c := range l.chains {
		if c.Name == chain {
			rule.Chain = c
		}
	}
	hash := sha256.New()
	for _, part := range parts {
		rule.Exprs = append(rule.Exprs, part...)
	}
	for _, e := range rule.Exprs {
		fmt.Fprintf(hash, "%T%+v;", e, e)
	}
	if comment != "" {
		rule.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	rule.UserData = userdata.Append(rule.UserData, udataRuleHash, hash.Sum(nil)[:8])
	l.rules[chain] = append(l.rules[chain], rule)
}

// match restricts a rule of an inet chain to the family.
func (f family) match() []expr.Any {
	return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f.nfproto})
}

func (f family) addrLen() uint32 { return uint32(f.any.BitLen() / 8) }

// srcOffset is where the source address is in the IP header (RFC 791, RFC 8200).
func (f family) srcOffset() uint32 {
	if f.any.Is4() {
		return 12
	}
	return 8
}

// dstOffset is where the destination address is in the IP header.
func (f family) dstOffset() uint32 { return f.srcOffset() + f.addrLen() }

func (f family) load(offset, register uint32) expr.Any {
	return &expr.Payload{
		DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.addrLen(),
	}
}

// inLoopback matches an address of the header against the family's loopback prefix.
func (f family) inLoopback(offset uint32) []expr.Any {
	exprs := []expr.Any{f.load(offset, reg1)}
	if bits := f.loopback.Bits(); bits < f.any.BitLen() {
		mask := make([]byte, f.addrLen())
		for i := range bits / 8 {
			mask[i] = 0xff
		}
		exprs = append(exprs, &expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: f.addrLen(), Mask: mask, Xor: make([]byte, f.addrLen()),
		})
	}
	return append(exprs, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: f.loopback.Addr().AsSlice()})
}

// translate looks the packet's destination up in a map and sends it where that says.
func (f family) translate(set *nftables.Set, withAddress bool) []expr.Any {
	exprs := f.match()
	at := uint32(0) // in registers of 4 bytes
	if withAddress {
		exprs = append(exprs, f.load(f.dstOffset(), reg1))
		at = f.addrLen() / 4
	}
	return append(
		exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register(at)},
		// The destination port is at the same place in TCP, UDP and SCTP.
		&expr.Payload{DestRegister: register(at + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetID: set.ID, SetName: set.Name},
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto),
			RegAddrMin: reg1, RegProtoMin: register(f.addrLen() / 4), Specified: true,
		},
	)
}

func (f family) addressPairIn(set *nftables.Set) []expr.Any {
	return []expr.Any{
		f.load(f.srcOffset(), reg1),
		f.load(f.dstOffset(), register(f.addrLen()/4)),
		&expr.Lookup{SourceRegister: reg1, SetID: set.ID, SetName: set.Name},
	}
}

// register names the n-th register of 4 bytes, as nft does.
func register(n uint32) uint32 {
	if n%4 == 0 {
		return reg1 + n/4
	}
	return reg32at0 + n
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: data},
	}
}

func ifnameLo() []byte { return []byte(ifnameField("lo")) }

// localDestination matches packets for an address of the node.
func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// translated matches connections whose destination was translated.
func translated() []expr.Any {
	dnat := binary.NativeEndian.AppendUint32(nil, 1<<5) // IPS_DST_NAT, nf_conntrack_common.h
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: dnat, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: zero},
	}
}

func sameBridge(set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register(unix.IFNAMSIZ / 4)},
		&expr.Lookup{SourceRegister: reg1, SetID: set.ID, SetName: set.Name},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
