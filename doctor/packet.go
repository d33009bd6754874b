package doctor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// packet is a packet whose way through a ruleset is followed. What is not known of it
// is empty: rules that ask for that may match or not.
type packet struct {
	in, out  string // interfaces
	src, dst netip.Addr
	state    uint32 // one bit of conntrack's states
}

// States of conntrack, as expressions have them (linux/netfilter/nf_conntrack_common.h).
const (
	stateEstablished = expr.CtStateBitESTABLISHED
	stateNew         = expr.CtStateBitNEW
)

// truth is whether a rule matches, as far as that can be known.
type truth int

const (
	no truth = iota
	maybe
	yes
)

// fate is what becomes of a packet.
type fate int

const (
	passes  fate = iota // or may pass
	goesOn              // to the end of the chain
	returns             // to the chain that it came from, by a rule
	isLost
)

// judge follows a packet through a ruleset. It errs on the packet's side: a rule that
// is not understood may have accepted it.
type judge struct {
	rules *ruleset
	p     packet
	left  int // rules that may still be looked at
	// culprit describes the rule that dropped the packet.
	culprit string
	// doubt: a rule that is not understood may have accepted the packet.
	doubt bool
}

// base is the packet's fate at a base chain, with its policy.
func (j *judge) base(c *nftables.Chain) fate {
	j.culprit, j.doubt, j.left = "", false, maxRules
	f := j.chain(keyOf(c), 0)
	if f == isLost && !j.doubt {
		return isLost
	}
	if (f == goesOn || f == returns) && !j.doubt && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
		j.culprit = fmt.Sprintf("the policy of chain %s is drop and no rule accepts them", c.Name)
		return isLost
	}
	return passes
}

// chain is the packet's fate in one chain.
func (j *judge) chain(key chainKey, depth int) fate {
	for i, rule := range j.rules.rules[key] {
		if j.left--; j.left < 0 || depth > 32 {
			j.doubt = true
			return passes
		}
		match, verdict := j.rule(rule)
		if match == no || verdict == nil {
			continue
		}
		f := j.verdict(key, verdict, depth)
		if match == maybe {
			// Whatever would let it pass may do so; what would end it may not.
			if f == passes || f == returns {
				j.doubt = true
			}
			continue
		}
		switch f {
		case goesOn:
			continue
		case isLost:
			if j.culprit == "" {
				j.culprit = fmt.Sprintf("rule %d of chain %s drops them", i+1, key.chain)
			}
		}
		return f
	}
	return goesOn
}

// verdict is what a verdict makes of the packet.
func (j *judge) verdict(key chainKey, v *expr.Verdict, depth int) fate {
	switch v.Kind {
	case expr.VerdictAccept, expr.VerdictQueue, expr.VerdictStolen, expr.VerdictStop:
		return passes
	case expr.VerdictDrop:
		return isLost
	case expr.VerdictReturn:
		return returns
	case expr.VerdictJump, expr.VerdictGoto:
		f := j.chain(chainKey{key.family, key.table, v.Chain}, depth+1)
		if f == returns || f == goesOn {
			if v.Kind == expr.VerdictGoto {
				return returns // past what follows here
			}
			return goesOn
		}
		return f
	}
	return goesOn
}

// rule says whether the packet matches a rule, and the rule's verdict; nil if it has
// none.
func (j *judge) rule(r *nftables.Rule) (match truth, verdict *expr.Verdict) {
	match = yes
	registers := make(map[uint32][]byte) // what is known to be there
	for _, e := range r.Exprs {
		t := yes
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Limit, *expr.Quota, *expr.Connlimit:
			t = maybe
		case *expr.Meta:
			j.meta(e, registers)
		case *expr.Payload:
			j.payload(e, registers)
		case *expr.Ct:
			if e.Key == expr.CtKeySTATE && !e.SourceRegister {
				registers[e.Register] = binary.NativeEndian.AppendUint32(nil, j.p.state)
			} else {
				delete(registers, e.Register)
			}
		case *expr.Bitwise:
			bitwise(e, registers)
		case *expr.Cmp:
			t = compare(e, registers)
		case *expr.Lookup:
			t, verdict = j.lookup(r, e, registers)
		case *expr.Match:
			t = j.match(e)
		case *expr.Target:
			verdict = target(e)
		case *expr.Reject:
			verdict = &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Verdict:
			verdict = e
		case *expr.Immediate:
			delete(registers, e.Register)
		default:
			t = maybe
		}
		if t == no {
			return no, nil
		}
		match = min(match, t)
	}
	return match, verdict
}

// meta loads what is known of the packet's way.
func (j *judge) meta(e *expr.Meta, registers map[uint32][]byte) {
	delete(registers, e.Register)
	name := func(s string) {
		if s != "" {
			registers[e.Register] = append([]byte(s), make([]byte, unix.IFNAMSIZ-len(s))...)
		}
	}
	switch {
	case e.SourceRegister:
	case e.Key == expr.MetaKeyIIFNAME:
		name(j.p.in)
	case e.Key == expr.MetaKeyOIFNAME:
		name(j.p.out)
	case e.Key == expr.MetaKeyNFPROTO && j.p.src.Is4():
		registers[e.Register] = []byte{unix.NFPROTO_IPV4}
	case e.Key == expr.MetaKeyNFPROTO:
		registers[e.Register] = []byte{unix.NFPROTO_IPV6}
	case e.Key == expr.MetaKeyMARK:
		registers[e.Register] = make([]byte, 4) // pods' packets have none
	}
}

// payload loads the packet's addresses.
func (j *judge) payload(e *expr.Payload, registers map[uint32][]byte) {
	delete(registers, e.DestRegister)
	src, dst := uint32(8), uint32(24)
	size := uint32(j.p.src.BitLen() / 8)
	if j.p.src.Is4() {
		src, dst = 12, 16
	}
	if e.Base != expr.PayloadBaseNetworkHeader || e.OperationType != expr.PayloadLoad || e.Len > size {
		return
	}
	switch {
	case e.Offset == src && j.p.src.IsValid():
		registers[e.DestRegister] = j.p.src.AsSlice()[:e.Len]
	case e.Offset == dst && j.p.dst.IsValid():
		registers[e.DestRegister] = j.p.dst.AsSlice()[:e.Len]
	}
}

// bitwise masks a register.
func bitwise(e *expr.Bitwise, registers map[uint32][]byte) {
	value, ok := registers[e.SourceRegister]
	delete(registers, e.DestRegister)
	if !ok || len(value) != len(e.Mask) || len(value) != len(e.Xor) {
		return
	}
	result := make([]byte, len(value))
	for i := range value {
		result[i] = value[i]&e.Mask[i] ^ e.Xor[i]
	}
	registers[e.DestRegister] = result
}

// compare compares a register with a value. A prefix of an interface's name is a
// value without the zero at the end.
func compare(e *expr.Cmp, registers map[uint32][]byte) truth {
	value, ok := registers[e.Register]
	if !ok || len(value) < len(e.Data) || e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
		return maybe
	}
	if bytes.Equal(value[:len(e.Data)], e.Data) == (e.Op == expr.CmpOpEq) {
		return yes
	}
	return no
}

// lookup looks a register up in a set or a verdict map.
func (j *judge) lookup(r *nftables.Rule, e *expr.Lookup, registers map[uint32][]byte) (truth, *expr.Verdict) {
	elements := j.rules.elements[setKey{r.Table.Family, r.Table.Name, e.SetName}]
	value, ok := registers[e.SourceRegister]
	if elements == nil || !ok {
		if e.IsDestRegSet { // whatever it leads to may accept
			return maybe, &expr.Verdict{Kind: expr.VerdictAccept}
		}
		return maybe, nil
	}
	verdict, found := elements[string(value)]
	switch {
	case found == e.Invert:
		return no, nil
	case e.IsDestRegSet && verdict != nil:
		return yes, verdict
	}
	return yes, nil
}

// match asks a match of iptables'.
func (j *judge) match(e *expr.Match) truth {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo1:
		return j.conntrack(&info.ConntrackMtinfoBase, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		return j.conntrack(&info.ConntrackMtinfoBase, info.StateMask)
	case *xt.ConntrackMtinfo3:
		return j.conntrack(&info.ConntrackMtinfoBase, info.StateMask)
	case *xt.Unknown:
		if e.Name == "comment" {
			return yes
		}
		if e.Name == "mark" && len(*info) >= 9 { // struct xt_mark_mtinfo1: mark, mask, invert
			zero := binary.NativeEndian.Uint32(*info) == 0
			if zero != ((*info)[8] != 0) {
				return yes
			}
			return no
		}
	}
	return maybe
}

// conntrack asks for the state alone. Its bits are those of nft's expressions
// (linux/netfilter/xt_conntrack.h).
func (j *judge) conntrack(info *xt.ConntrackMtinfoBase, mask uint16) truth {
	if xt.ConntrackFlags(info.MatchFlags)&^xt.ConntrackStateAlias != xt.ConntrackState {
		return maybe
	}
	if (mask&uint16(j.p.state) != 0) != (xt.ConntrackFlags(info.InvertFlags)&xt.ConntrackState != 0) {
		return yes
	}
	return no
}

// target is the verdict of a target of iptables'; nil if the packet goes on.
func target(e *expr.Target) *expr.Verdict {
	switch e.Name {
	case "REJECT":
		return &expr.Verdict{Kind: expr.VerdictDrop}
	case "NFQUEUE":
		return &expr.Verdict{Kind: expr.VerdictAccept}
	}
	return nil
}
