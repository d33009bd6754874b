package kernel

import (
	"errors"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// branch is a kind of chains that come and go with elements: verdict maps lead to
// them. Each is an element of its own to who keeps the desired state, with the
// branch's name as Set and the argument as Bytes.
type branch struct {
	name  string
	rules func(argument string) [][]expr.Any
}

// Branch adds a kind of chains. There is one for each argument that is asked for,
// with the rules for that argument; nil rules say that there is no such argument.
func (l *Layout) Branch(name string, rules func(argument string) [][]expr.Any) {
	l.branches = append(l.branches, branch{name, rules})
}

// VerdictMap adds a map from a concatenation of types to chains: the value of an
// element is the name of the chain that packets go to.
func (l *Layout) VerdictMap(name string, key ...nftables.SetDatatype) {
	l.addSet(&nftables.Set{Name: name, IsMap: true, KeyType: concat(key), DataType: nftables.TypeVerdict})
}

// BranchChain is the name of the chain of that kind for the argument.
func BranchChain(kind, argument string) string { return kind + "_" + argument }

// branchOf is the branch and the argument of a chain; nil if it belongs to none.
func (l *Layout) branchOf(chain string) (*branch, string) {
	for i, b := range l.branches {
		if argument, ok := strings.CutPrefix(chain, BranchChain(b.name, "")); ok && b.rules(argument) != nil {
			return &l.branches[i], argument
		}
	}
	return nil, ""
}

// rulesOf are the rules that a chain of the layout or of a branch should have.
func (l *Layout) rulesOf(chain string) []*nftables.Rule {
	b, argument := l.branchOf(chain)
	if b == nil {
		return l.rules[chain]
	}
	var rules []*nftables.Rule
	for _, exprs := range b.rules(argument) {
		rules = append(rules, l.newRule(chain, "", exprs))
	}
	return rules
}

// addBranches adds the chains among the elements to a transaction.
func (l *Layout) addBranches(conn *nftables.Conn, elements []Element) {
	l.eachBranch(elements, func(chain *nftables.Chain) {
		conn.AddChain(chain)
		for _, rule := range l.rulesOf(chain.Name) {
			conn.AddRule(rule)
		}
	})
}

// removeBranches deletes the chains among the elements, and their rules with them.
func (l *Layout) removeBranches(conn *nftables.Conn, elements []Element) {
	l.eachBranch(elements, conn.DelChain)
}

func (l *Layout) eachBranch(elements []Element, do func(*nftables.Chain)) {
	for _, b := range l.branches {
		for _, e := range elements {
			if e.Set == b.name {
				do(&nftables.Chain{Name: BranchChain(b.name, e.Bytes), Table: l.table})
			}
		}
	}
}

// branchElements adds the chains of branches that the table has to found.
func (c *tableConn) branchElements(found map[Key]Element) error {
	if len(c.layout.branches) == 0 {
		return nil
	}
	chains, err := c.chains()
	for name := range chains {
		if b, argument := c.layout.branchOf(name); b != nil {
			key := Key{Set: b.name, Bytes: argument}
			found[key] = Element{Key: key}
		}
	}
	return err
}

// readVerdict reads the chain that an element of a verdict map leads to. Verdicts
// that no Layout writes get a value that no chain's name equals.
func (e *Element) readVerdict(data []byte) error {
	a, err := attributes(data)
	if err != nil {
		return err
	}
	code := a[unix.NFTA_VERDICT_CODE]
	if len(code) != 4 {
		return errors.New("read an answer of nftables: an element without a verdict")
	}
	e.Value = text(a[unix.NFTA_VERDICT_CHAIN])
	if expr.VerdictKind(int32(number(code))) != expr.VerdictGoto {
		e.Value = "verdict " + e.Value
	}
	return nil
}
