package doctor

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// legacyTable is one table of iptables-legacy.
type legacyTable struct {
	v6     bool
	name   string
	policy map[string]string   // base chain -> ACCEPT or DROP
	chains []string            // all, in their order
	rules  map[string][]string // chain -> rules, as iptables-save has them
}

// askLegacy returns the tables of iptables-legacy that the kernel has. The programs
// iptables-legacy-save would make a table that they are asked for: they are run for
// those that /proc names only.
func (n *Node) askLegacy(ctx context.Context) ([]legacyTable, error) {
	if !n.Live {
		return nil, errNotLive
	}
	return n.legacy.get(ctx, n.readLegacy)
}

func (n *Node) readLegacy(ctx context.Context) ([]legacyTable, error) {
	var all []legacyTable
	for _, family := range []struct {
		names, program string
		v6             bool
	}{{"/proc/net/ip_tables_names", "iptables-legacy-save", false}, {"/proc/net/ip6_tables_names", "ip6tables-legacy-save", true}} {
		text, err := n.read(family.names)
		if err != nil {
			continue // the kernel has no such tables
		}
		for _, name := range strings.Fields(text) {
			if name != "filter" && name != "nat" {
				continue
			}
			cmd := exec.CommandContext(ctx, family.program, "-t", name)
			var out bytes.Buffer
			cmd.Stdout, cmd.WaitDelay = &out, 100*time.Millisecond
			if err := cmd.Run(); err != nil {
				return nil, fmt.Errorf("the kernel has a table %s of iptables-legacy, which %s cannot show: %w", name, family.program, err)
			}
			all = append(all, parseSave(name, out.String(), family.v6))
		}
	}
	return all, nil
}

// parseSave reads what iptables-save prints of one table.
func parseSave(name, text string, v6 bool) legacyTable {
	t := legacyTable{v6: v6, name: name, policy: make(map[string]string), rules: make(map[string][]string)}
	for l := range strings.Lines(text) {
		l = strings.TrimSpace(l)
		if def, ok := strings.CutPrefix(l, ":"); ok {
			if f := strings.Fields(def); len(f) > 1 {
				t.policy[f[0]] = f[1]
				t.chains = append(t.chains, f[0])
			}
		}
		if rule, ok := strings.CutPrefix(l, "-A "); ok {
			chain, rest, _ := strings.Cut(rule, " ")
			t.rules[chain] = append(t.rules[chain], rest)
		}
	}
	return t
}

// lost says why a packet is dropped in a base chain of the table; empty if it passes or
// may pass.
func (t *legacyTable) lost(base string, p packet) string {
	doubt := false
	f := t.chain(base, p, 0, &doubt)
	switch {
	case doubt || f == passes:
		return ""
	case f == isLost:
		return "a rule of chain " + base + " drops them"
	case t.policy[base] == "DROP":
		return "the policy of chain " + base + " is DROP and no rule accepts them"
	}
	return ""
}

// chain follows the packet through a chain, as judge does.
func (t *legacyTable) chain(name string, p packet, depth int, doubt *bool) fate {
	if depth > 32 {
		*doubt = true
		return passes
	}
	for _, rule := range t.rules[name] {
		match, target, jump := legacyRule(rule, p)
		if match == no || target == "" {
			continue
		}
		f := goesOn
		switch target {
		case "ACCEPT", "NFQUEUE":
			f = passes
		case "DROP", "REJECT":
			f = isLost
		case "RETURN":
			f = returns
		default:
			if _, own := t.policy[target]; own {
				if f = t.chain(target, p, depth+1, doubt); f == returns {
					f = goesOn
				}
				if !jump && f == goesOn {
					f = returns
				}
			}
		}
		if match == maybe {
			*doubt = *doubt || f == passes || f == returns
		} else if f != goesOn {
			return f
		}
	}
	return goesOn
}

// legacyRule says whether a packet matches a rule, and its target; jump tells -j from
// -g.
func legacyRule(rule string, p packet) (match truth, target string, jump bool) {
	match, jump = yes, true
	words := strings.Fields(rule)
	negated := false
	for i := 0; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		t := yes
		switch words[i] {
		case "!":
			negated = true
			continue
		case "-i":
			t = sameName(value, p.in)
		case "-o":
			t = sameName(value, p.out)
		case "-s":
			t = within(value, p.src)
		case "-d":
			t = within(value, p.dst)
		case "-m":
			if !slices.Contains([]string{"conntrack", "state", "comment"}, value) {
				t = maybe
			}
		case "--ctstate", "--state":
			want := "ESTABLISHED"
			if p.state == stateNew {
				want = "NEW"
			}
			if !slices.Contains(strings.Split(value, ","), want) {
				t = no
			}
		case "--comment":
			i = endOfQuote(words, i+1) - 1
		case "-j", "-g":
			target, jump = value, words[i] == "-j"
			return match, target, jump // what follows are the target's own options
		default:
			match = min(match, maybe)
			continue
		}
		i++
		if negated && t != maybe {
			t = yes - t
		}
		negated = false
		if match = min(match, t); match == no {
			return no, "", true
		}
	}
	return match, target, jump
}

// endOfQuote is the index of the last word of a text in quotes.
func endOfQuote(words []string, i int) int {
	if i >= len(words) || !strings.HasPrefix(words[i], `"`) || len(words[i]) > 1 && strings.HasSuffix(words[i], `"`) {
		return i
	}
	for i++; i < len(words) && !strings.HasSuffix(words[i], `"`); i++ {
	}
	return i
}

// sameName compares an interface's name with that of a rule, where + stands for any
// end.
func sameName(rule, name string) truth {
	stem, open := strings.CutSuffix(rule, "+")
	switch {
	case rule == "+":
		return yes
	case name == "":
		return maybe
	case name == rule, open && strings.HasPrefix(name, stem):
		return yes
	}
	return no
}

// within says whether an address is in a rule's prefix.
func within(rule string, addr netip.Addr) truth {
	p, err := netip.ParsePrefix(rule)
	if err != nil {
		if single, err := netip.ParseAddr(rule); err == nil {
			p = netip.PrefixFrom(single, single.BitLen())
		} else {
			return maybe
		}
	}
	switch {
	case !addr.IsValid():
		return maybe
	case p.Contains(addr):
		return yes
	}
	return no
}
