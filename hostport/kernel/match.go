package kernel

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers as nft assigns them: 1 to 4 are of 16 bytes each, from 8 on they are
// the same memory in pieces of 4 bytes.
const (
	reg1     = 1
	reg32at0 = 8
)

// register returns the register of the n-th piece of 4 bytes, as nft names it.
func register(n int) uint32 {
	if n%4 == 0 {
		return reg1 + uint32(n/4)
	}
	return reg32at0 + uint32(n)
}

// Match is `meta nfproto FAMILY`.
func (f Family) Match() []expr.Any {
	return meta(expr.MetaKeyNFPROTO, expr.CmpOpEq, []byte{f.Number})
}

// SourceIn is `ip saddr PREFIX`.
func (f Family) SourceIn(prefix netip.Prefix) []expr.Any { return f.addrIn(f.srcOffset(), prefix) }

// DestinationIn is `ip daddr PREFIX`.
func (f Family) DestinationIn(prefix netip.Prefix) []expr.Any { return f.addrIn(f.dstOffset(), prefix) }

// DestinationInSet is `ip daddr @SET`.
func (f Family) DestinationInSet(l *Layout, set string) []expr.Any {
	return append(f.Match(), f.load(f.dstOffset(), reg1), l.lookup(set))
}

// SourceVerdict is `ip saddr vmap @MAP`.
func (f Family) SourceVerdict(l *Layout, verdicts string) []expr.Any {
	lookup := l.lookup(verdicts)
	lookup.DestRegister, lookup.IsDestRegSet = unix.NFT_REG_VERDICT, true
	return append(f.Match(), f.load(f.srcOffset(), reg1), lookup)
}

// AddressesInSet is `ip saddr . ip daddr @SET`.
func (f Family) AddressesInSet(l *Layout, set string) []expr.Any {
	return append(f.Match(), f.load(f.srcOffset(), reg1), f.load(f.dstOffset(), register(f.AddrLen()/4)), l.lookup(set))
}

// Translate is `dnat ip to meta l4proto . th dport map @MAP`, or with an address
// `dnat ip to ip daddr . meta l4proto . th dport map @MAP`.
func (f Family) Translate(l *Layout, set string, withAddress bool) []expr.Any {
	exprs := f.Match()
	at := 0
	if withAddress {
		exprs = append(exprs, f.load(f.dstOffset(), reg1))
		at = f.AddrLen() / 4
	}
	lookup := l.lookup(set)
	lookup.DestRegister, lookup.IsDestRegSet = reg1, true
	return append(
		exprs,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register(at)},
		// The destination port is at the same place in TCP, UDP and SCTP.
		&expr.Payload{DestRegister: register(at + 1), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		lookup,
		&expr.NAT{
			Type: expr.NATTypeDestNAT, Family: uint32(f.Number),
			RegAddrMin: reg1, RegProtoMin: register(f.AddrLen() / 4), Specified: true,
		},
	)
}

// srcOffset is where the source address is in the IP header (RFC 791, RFC 8200).
func (f Family) srcOffset() int {
	if f.Any.Is4() {
		return 12
	}
	return 8
}

func (f Family) dstOffset() int { return f.srcOffset() + f.AddrLen() }

func (f Family) load(offset int, register uint32) expr.Any {
	return &expr.Payload{
		DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: uint32(offset), Len: uint32(f.AddrLen()),
	}
}

func (f Family) addrIn(offset int, prefix netip.Prefix) []expr.Any {
	exprs := append(f.Match(), f.load(offset, reg1))
	if bits := prefix.Bits(); bits < f.Any.BitLen() {
		mask := net.CIDRMask(bits, f.Any.BitLen())
		exprs = append(exprs, &expr.Bitwise{
			SourceRegister: reg1, DestRegister: reg1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask)),
		})
	}
	return append(exprs, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: prefix.Addr().AsSlice()})
}

func (l *Layout) lookup(name string) *expr.Lookup {
	set := l.set(name)
	return &expr.Lookup{SourceRegister: reg1, SetID: set.ID, SetName: set.Name}
}

func meta(key expr.MetaKey, op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: op, Register: reg1, Data: data},
	}
}

// InputInSet is `iifname @SET`.
func (l *Layout) InputInSet(set string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, l.lookup(set)}
}

// InterfacesInSet is `iifname . oifname @SET`.
func (l *Layout) InterfacesInSet(set string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: register(unix.IFNAMSIZ / 4)},
		l.lookup(set),
	}
}

// OutputNot is `oifname != NAME`.
func OutputNot(name string) []expr.Any {
	return meta(expr.MetaKeyOIFNAME, expr.CmpOpNeq, []byte(InterfaceField(name)))
}

// LocalDestination is `fib daddr type local`.
func LocalDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// Translated is `ct status dnat`: the connection's destination was translated.
func Translated() []expr.Any {
	dnat := binary.NativeEndian.AppendUint32(nil, 1<<5) // IPS_DST_NAT, nf_conntrack_common.h
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: dnat, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: zero},
	}
}

// Masquerade is `masquerade`.
func Masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// Jump is `jump CHAIN`.
func Jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// Drop is `drop`.
func Drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// Return is `return`.
func Return() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

// PortField is a port as a field of a concatenation: fields fill registers of 4 bytes.
func PortField(port uint16) string {
	return string(binary.BigEndian.AppendUint16(nil, port)) + "\x00\x00"
}

// ProtocolField is an IP protocol as a field of a concatenation.
func ProtocolField(protocol byte) string { return string([]byte{protocol, 0, 0, 0}) }

// InterfaceField is an interface's name as a field of a key.
func InterfaceField(name string) string {
	field := make([]byte, unix.IFNAMSIZ)
	copy(field, name)
	return string(field)
}

// InterfaceIn is the inverse of InterfaceField.
func InterfaceIn(field string) string {
	name, _, _ := strings.Cut(field, "\x00")
	return name
}
