package kernel

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// udataRuleHash is the type of our own entry in a rule's user data, far from those
// of nft (libnftnl, udata.h), which ignores it.
const udataRuleHash userdata.Type = 0xc1

// Layout is an inet table without its elements: what never changes, and of what kind
// the chains are that change with the elements. Sets and chains must be added before
// the rules that refer to them.
type Layout struct {
	name   string
	table  *nftables.Table
	sets   []*nftables.Set
	chains []*nftables.Chain
	rules  map[string][]*nftables.Rule // chain -> its rules, in order
	// branches are the kinds of chains that come and go with elements.
	branches []branch
}

// NewLayout returns an empty inet table of that name.
func NewLayout(name string) *Layout {
	return &Layout{
		name: name, table: &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
		rules: make(map[string][]*nftables.Rule),
	}
}

// Set adds a set whose keys are a concatenation of the types.
func (l *Layout) Set(name, comment string, key ...nftables.SetDatatype) {
	l.addSet(&nftables.Set{Name: name, KeyType: concat(key), Comment: comment})
}

// Map adds a map from one concatenation of types to another.
func (l *Layout) Map(name string, key, value []nftables.SetDatatype) {
	l.addSet(&nftables.Set{Name: name, IsMap: true, KeyType: concat(key), DataType: concat(value)})
}

func (l *Layout) addSet(s *nftables.Set) {
	s.Table = l.table
	s.ID = uint32(len(l.sets) + 1) // unique within a transaction
	if s.KeyType == nftables.TypeIFName {
		s.KeyByteOrder = binaryutil.NativeEndian
	}
	l.sets = append(l.sets, s)
}

// concat is one type, or several concatenated. It cannot fail: the limit is five.
func concat(types []nftables.SetDatatype) nftables.SetDatatype {
	if len(types) == 1 {
		return types[0]
	}
	t, err := nftables.ConcatSetType(types...)
	if err != nil {
		return nftables.TypeInvalid
	}
	return t
}

// set returns the set as rules refer to it.
func (l *Layout) set(name string) *nftables.Set {
	for _, s := range l.sets {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// Chain adds a chain that rules jump to.
func (l *Layout) Chain(name string) {
	l.chains = append(l.chains, &nftables.Chain{Name: name, Table: l.table})
}

// BaseChain adds a chain that the kernel calls at a hook, with policy accept.
func (l *Layout) BaseChain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) {
	accept := nftables.ChainPolicyAccept
	l.chains = append(l.chains, &nftables.Chain{
		Name: name, Table: l.table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &accept,
	})
}

// Rule appends a rule to a chain. Its user data holds the comment for nft and a
// hash of the rule, by which it is recognized whatever form the kernel lists it in.
func (l *Layout) Rule(chain, comment string, parts ...[]expr.Any) {
	l.rules[chain] = append(l.rules[chain], l.newRule(chain, comment, slices.Concat(parts...)))
}

func (l *Layout) newRule(chain, comment string, exprs []expr.Any) *nftables.Rule {
	rule := &nftables.Rule{Table: l.table, Chain: &nftables.Chain{Name: chain, Table: l.table}, Exprs: exprs}
	hash := sha256.New()
	for _, e := range rule.Exprs {
		fmt.Fprintf(hash, "%T%+v;", e, e)
	}
	if comment != "" {
		rule.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	rule.UserData = userdata.Append(rule.UserData, udataRuleHash, hash.Sum(nil)[:8])
	return rule
}

// add adds the table to a transaction.
func (l *Layout) add(conn *nftables.Conn) error {
	conn.AddTable(l.table)
	for _, s := range l.sets {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	for _, chain := range l.chains {
		conn.AddChain(chain)
	}
	for _, chain := range l.chains {
		for _, r := range l.rules[chain.Name] {
			conn.AddRule(r)
		}
	}
	return nil
}
