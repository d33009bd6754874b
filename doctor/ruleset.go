package doctor

import (
	"context"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// ruleset is what nftables holds: the tables of nft, and those of iptables-nft.
type ruleset struct {
	tables []*nftables.Table
	chains []*nftables.Chain
	rules  map[chainKey][]*nftables.Rule
	// elements are those of the sets that rules name, as far as they are keys
	// without ranges: table and set -> key -> verdict (nil in a set).
	elements map[setKey]map[string]*expr.Verdict
}

type chainKey struct {
	family nftables.TableFamily
	table  string
	chain  string
}

type setKey struct {
	family nftables.TableFamily
	table  string
	set    string
}

// maxRules bounds the rules that are read: a node with many thousand Services has more
// in nat tables, which no check needs.
const maxRules = 20000

func keyOf(c *nftables.Chain) chainKey { return chainKey{c.Table.Family, c.Table.Name, c.Name} }

// askRuleset returns the node's nftables.
func (n *Node) askRuleset(ctx context.Context) (*ruleset, error) {
	if !n.Live {
		return nil, errNotLive
	}
	return n.ruleset.get(ctx, n.readRuleset)
}

// readRuleset reads tables and chains, and of filtering chains the rules.
func (n *Node) readRuleset(ctx context.Context) (*ruleset, error) {
	var options []nftables.ConnOption
	if n.NetNS != 0 {
		options = append(options, nftables.WithNetNSFd(n.NetNS))
	}
	c, err := nftables.New(append(options, nftables.AsLasting())...)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }() // nothing was changed
	s := &ruleset{rules: make(map[chainKey][]*nftables.Rule), elements: make(map[setKey]map[string]*expr.Verdict)}
	if s.tables, err = c.ListTables(); err != nil {
		return nil, fmt.Errorf("list nftables' tables: %w", err)
	}
	if s.chains, err = c.ListChains(); err != nil {
		return nil, fmt.Errorf("list nftables' chains: %w", err)
	}
	filtering := make(map[chainKey]bool) // tables with a filter chain, by an empty chain's name
	for _, chain := range s.chains {
		if isFilter(chain) {
			filtering[chainKey{chain.Table.Family, chain.Table.Name, ""}] = true
		}
	}
	total := 0
	for _, chain := range s.chains {
		if !filtering[chainKey{chain.Table.Family, chain.Table.Name, ""}] && !isPortmap(chain.Name) {
			continue
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return nil, fmt.Errorf("list the rules of chain %s: %w", chain.Name, err)
		}
		if total += len(rules); total > maxRules {
			return nil, fmt.Errorf("there are more than %d rules", maxRules)
		}
		s.rules[keyOf(chain)] = rules
		s.readSets(c, chain.Table, rules)
	}
	return s, nil
}

// isFilter says whether a chain filters forwarded packets, or those to the node.
func isFilter(c *nftables.Chain) bool {
	if c.Hooknum == nil || c.Type != nftables.ChainTypeFilter || c.Table.Family == nftables.TableFamilyARP ||
		c.Table.Family == nftables.TableFamilyBridge || c.Table.Family == nftables.TableFamilyNetdev {
		return false
	}
	return *c.Hooknum == *nftables.ChainHookForward || *c.Hooknum == *nftables.ChainHookInput
}

// readSets reads the sets that rules look into. What cannot be read stays unknown.
func (s *ruleset) readSets(c *nftables.Conn, table *nftables.Table, rules []*nftables.Rule) {
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			lookup, ok := e.(*expr.Lookup)
			if !ok {
				continue
			}
			key := setKey{table.Family, table.Name, lookup.SetName}
			if _, known := s.elements[key]; known {
				continue
			}
			s.elements[key] = nil
			set, err := c.GetSetByName(table, lookup.SetName)
			if err != nil || set.Interval || set.Concatenation {
				continue
			}
			elements, err := c.GetSetElements(set)
			if err != nil {
				continue
			}
			found := make(map[string]*expr.Verdict, len(elements))
			for _, element := range elements {
				found[string(element.Key)] = element.VerdictData
			}
			s.elements[key] = found
		}
	}
}

// table returns a table; nil if there is none.
func (s *ruleset) table(family nftables.TableFamily, name string) *nftables.Table {
	for _, t := range s.tables {
		if t.Family == family && t.Name == name {
			return t
		}
	}
	return nil
}

// hasChain says whether there is a chain of that name in any table.
func (s *ruleset) hasChain(name string) bool {
	for _, c := range s.chains {
		if c.Name == name {
			return true
		}
	}
	return false
}
