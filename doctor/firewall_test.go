package doctor

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// forward is a ruleset with one chain at forward.
func forward(policy nftables.ChainPolicy, rules ...[]expr.Any) *ruleset {
	table := &nftables.Table{Name: "fw", Family: nftables.TableFamilyINet}
	chain := &nftables.Chain{Name: "fwd", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Policy: &policy}
	s := &ruleset{tables: []*nftables.Table{table}, chains: []*nftables.Chain{chain}, rules: map[chainKey][]*nftables.Rule{}, elements: map[setKey]map[string]*expr.Verdict{}}
	for _, exprs := range rules {
		s.rules[keyOf(chain)] = append(s.rules[keyOf(chain)], &nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	return s
}

// named compares an interface's name.
func named(key expr.MetaKey, op expr.CmpOp, name string, wild bool) []expr.Any {
	data := []byte(name)
	if !wild {
		data = append(data, make([]byte, 16-len(name))...)
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func and(conditions []expr.Any, kind expr.VerdictKind) []expr.Any {
	return append(conditions, &expr.Counter{}, &expr.Verdict{Kind: kind})
}

// What can be known of a packet's way is known, and what cannot lets it pass.
func TestJudge(t *testing.T) {
	t.Parallel()
	const eq, ne = expr.CmpOpEq, expr.CmpOpNeq
	pod, out := netip.MustParseAddr("10.10.0.2"), netip.MustParseAddr("192.0.2.1")
	p := packet{in: "mynet0", out: "eth0", src: pod, dst: out, state: stateNew}
	subnet := func(third byte) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 255, 255, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Op: eq, Register: 1, Data: []byte{10, 10, third, 0}}}
	}
	state := func(bits uint32) []expr.Any {
		return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
			&expr.Cmp{Op: ne, Register: 1, Data: make([]byte, 4)}}
	}
	mark := xt.Unknown(append(binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 0x4000), 0x4000), 0))
	const drop, accept = nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	for name, c := range map[string]struct {
		rules *ruleset
		lost  bool
	}{
		"accepts":                    {forward(accept), false},
		"drops":                      {forward(drop), true},
		"bridge accepted":            {forward(drop, and(named(expr.MetaKeyIIFNAME, eq, "mynet0", false), expr.VerdictAccept)), false},
		"bridge accepted by prefix":  {forward(drop, and(named(expr.MetaKeyIIFNAME, eq, "mynet", true), expr.VerdictAccept)), false},
		"another accepted":           {forward(drop, and(named(expr.MetaKeyIIFNAME, eq, "docker0", false), expr.VerdictAccept)), true},
		"all but it accepted":        {forward(drop, and(named(expr.MetaKeyIIFNAME, ne, "mynet0", false), expr.VerdictAccept)), true},
		"subnet accepted":            {forward(drop, and(subnet(0), expr.VerdictAccept)), false},
		"another subnet accepted":    {forward(drop, and(subnet(1), expr.VerdictAccept)), true},
		"established accepted":       {forward(drop, and(state(stateEstablished), expr.VerdictAccept)), true},
		"new accepted":               {forward(drop, and(state(stateNew), expr.VerdictAccept)), false},
		"rejected":                   {forward(accept, []expr.Any{&expr.Reject{}}), true},
		"rejected by iptables":       {forward(accept, []expr.Any{&expr.Target{Name: "REJECT"}}), true},
		"accepted before the reject": {forward(accept, and(named(expr.MetaKeyOIFNAME, eq, "eth0", false), expr.VerdictAccept), []expr.Any{&expr.Reject{}}), false},
		"some ports accepted":        {forward(drop, and([]expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, &expr.Cmp{Op: eq, Register: 1, Data: []byte{0, 80}}}, expr.VerdictAccept)), false},
		"some ports dropped":         {forward(accept, and([]expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, &expr.Cmp{Op: eq, Register: 1, Data: []byte{0, 80}}}, expr.VerdictDrop)), false},
		"marked accepted":            {forward(drop, and([]expr.Any{&expr.Match{Name: "mark", Info: &mark}}, expr.VerdictAccept)), true},
		"marked by a rule, accepted": {forward(drop, []expr.Any{&expr.Target{Name: "MARK"}}, and([]expr.Any{&expr.Match{Name: "mark", Info: &mark}}, expr.VerdictAccept)), false},
		"unknown match accepted":     {forward(drop, and([]expr.Any{&expr.Match{Name: "bpf", Info: &xt.Unknown{}}}, expr.VerdictAccept)), false},
		"a map that is not known":    {forward(drop, []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: "x"}}), false},
	} {
		why := c.rules.lost(c.rules.chains[0], p)
		if (why != "") != c.lost {
			t.Errorf("%s: lost because of %q, want lost %v", name, why, c.lost)
		}
	}
	// Chains that are jumped to, and back.
	s := forward(drop, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "ours"}})
	key := chainKey{nftables.TableFamilyINet, "fw", "ours"}
	for verdict, lost := range map[expr.VerdictKind]bool{expr.VerdictAccept: false, expr.VerdictDrop: true, expr.VerdictReturn: true} {
		s.rules[key] = []*nftables.Rule{{Table: s.tables[0], Exprs: []expr.Any{&expr.Verdict{Kind: verdict}}}}
		if why := s.lost(s.chains[0], p); (why != "") != lost {
			t.Errorf("a jump to a chain with verdict %d: %q", verdict, why)
		}
	}
	s.rules[key] = []*nftables.Rule{{Table: s.tables[0], Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "ours"}}}}
	if why := s.lost(s.chains[0], p); why != "" {
		t.Errorf("a chain that jumps to itself: %q", why)
	}
}

// iptables-legacy-save's text is followed as nft's rules are.
func TestLegacy(t *testing.T) {
	t.Parallel()
	pod, out := netip.MustParseAddr("10.10.0.2"), netip.MustParseAddr("192.0.2.1")
	p := packet{in: "mynet0", out: "eth0", src: pod, dst: out, state: stateNew}
	for rules, lost := range map[string]bool{
		"":                                       true,
		"-A FORWARD -i mynet0 -j ACCEPT":         false,
		"-A FORWARD -i mynet+ -j ACCEPT":         false,
		"-A FORWARD ! -i mynet0 -j ACCEPT":       true,
		"-A FORWARD -s 10.10.0.0/24 -j ACCEPT":   false,
		"-A FORWARD -s 10.11.0.0/24 -j ACCEPT":   true,
		"-A FORWARD ! -s 10.11.0.0/24 -j ACCEPT": false,
		"-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT":                              true,
		"-A FORWARD -m conntrack ! --ctstate RELATED,ESTABLISHED -j ACCEPT":                            false,
		`-A FORWARD -m comment --comment "let them -j DROP in" -i mynet0 -j ACCEPT`:                    false,
		"-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT":                                                false,
		"-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT":                                            true,
		"-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n-A OURS -j MARK --set-xmark 0x4000/0x4000": false,
		"-A FORWARD -i mynet0 -j OURS\n-A OURS -o eth0 -j ACCEPT":                                      false,
		"-A FORWARD -i mynet0 -j OURS\n-A OURS -o eth0 -j RETURN\n-A OURS -j ACCEPT":                   true,
		"-A FORWARD -i mynet0 -g OURS\n-A OURS -o eth9 -j ACCEPT\n-A FORWARD -j ACCEPT":                true,
		"-A FORWARD -j OURS\n-A FORWARD -j ACCEPT":                                                     false,
		"-A FORWARD -j OURS\n-A OURS -j OURS\n-A FORWARD -j ACCEPT":                                    false,
		"-A FORWARD -o eth0 -j REJECT --reject-with icmp-port-unreachable\n-A FORWARD -j ACCEPT":       true,
	} {
		table := parseSave("filter", "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [1:2]\n:OURS - [0:0]\n"+rules+"\nCOMMIT\n", false)
		if why := table.lost("FORWARD", p); (why != "") != lost {
			t.Errorf("%s: lost because of %q, want lost %v", rules, why, lost)
		}
	}
}

func TestFirewallChecks(t *testing.T) {
	t.Parallel()
	names := func(more ...string) map[string]string {
		return conf(append([]string{"/proc/4/comm", "firewalld\n"}, more...)...)
	}
	const ufwOn, ufwDefault = "/etc/ufw/ufw.conf", "/etc/default/ufw"
	dn := forward(nftables.ChainPolicyAccept)
	nat := &nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4}
	chain := &nftables.Chain{Name: "CNI-DN-abc", Table: nat}
	dn.chains = append(dn.chains, chain)
	dn.rules[keyOf(chain)] = []*nftables.Rule{{Table: nat, Chain: chain, Exprs: []expr.Any{&expr.Target{Name: "DNAT", Info: &xt.NatRange2{NatRange: xt.NatRange{MinIP: []byte{10, 10, 0, 9}}}}}}}
	mix := forward(nftables.ChainPolicyAccept)
	mix.chains[0].Name = "FORWARD"
	whole := &ruleset{tables: []*nftables.Table{{Name: "crinet", Family: nftables.TableFamilyINet}}}
	for _, name := range []string{"guard", "prerouting", "output", "postrouting", "hostports"} {
		whole.chains = append(whole.chains, &nftables.Chain{Name: name, Table: whole.tables[0]})
	}
	half := &ruleset{tables: whole.tables, chains: whole.chains[:3]}
	installed := conf("/etc/default/crinetd", "CRINETD_FLAGS=\n", "/proc/stat", "cpu 1\nbtime 1\n", "/var/lib/crinet/journal.db", "")
	up := &Crinetd{Ready: true}
	run(t, []tc{
		{name: "drops", check: "forward-nft", files: conf(), rules: forward(nftables.ChainPolicyDrop), links: bridged(nil), want: Outcome(Error), found: "table inet fw drops packets from pods to the outside", mend: "nft insert rule inet fw fwd iifname mynet0 accept"},
		{name: "accepts", check: "forward-nft", files: conf(), rules: forward(nftables.ChainPolicyAccept), want: OK, found: "1 chain at forward"},
		{name: "from outside only", check: "forward-nft", files: conf(), rules: forward(nftables.ChainPolicyDrop, and(named(expr.MetaKeyIIFNAME, expr.CmpOpEq, "mynet0", false), expr.VerdictAccept),
			and([]expr.Any{&expr.Match{Name: "conntrack", Info: &xt.ConntrackMtinfo1{ConntrackMtinfoBase: xt.ConntrackMtinfoBase{MatchFlags: 1}, StateMask: 2}}}, expr.VerdictAccept)),
			links: bridged(nil), want: Outcome(Warning), found: "from other nodes to pods"},
		{name: "plugin firewall", check: "forward-nft", files: map[string]string{"/etc/cni/net.d/a.conflist": `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"},{"type":"firewall"}]}`}, rules: forward(nftables.ChainPolicyDrop), want: OK, found: "plugin firewall"},
		{name: "not known", check: "forward-nft", files: map[string]string{"/etc/cni/net.d/a.conflist": `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"calico"}]}`}, rules: forward(nftables.ChainPolicyDrop), want: Skipped},
		{name: "not running", check: "firewalld", files: conf(), want: Skipped},
		{name: "unaware", check: "firewalld", files: names("/etc/firewalld/zones/public.xml", "<zone><interface name=\"eth0\"/></zone>\n"), want: Outcome(Warning), found: "no zone has 10.10.0.0/24, mynet0", mend: "--zone=trusted --add-source=10.10.0.0/24"},
		{name: "aware", check: "firewalld", files: names("/etc/firewalld/zones/trusted.xml", "<zone>\n<source address=\"10.10.0.0/24\"/></zone>\n"), want: OK, found: "trusted.xml:2"},
		{name: "default zone forwards", check: "firewalld", files: names("/usr/lib/firewalld/zones/public.xml", "<zone>\n<forward/>\n</zone>\n"), want: Outcome(Info), found: "public.xml", mend: "--zone=trusted"},
		{name: "off", check: "ufw", files: conf(ufwOn, "ENABLED=no\n"), want: Skipped},
		{name: "drops", check: "ufw", files: conf(ufwOn, "ENABLED=yes\n", ufwDefault, "DEFAULT_FORWARD_POLICY=\"DROP\"\n"), want: Outcome(Warning), mend: "ufw route allow in on mynet0"},
		{name: "accepts", check: "ufw", files: conf(ufwOn, "ENABLED=yes\n", ufwDefault, "DEFAULT_FORWARD_POLICY=\"ACCEPT\"\n"), want: OK},
		{name: "routes", check: "ufw", files: conf(ufwOn, "ENABLED=yes\n", ufwDefault, "DEFAULT_FORWARD_POLICY=\"DROP\"\n", "/etc/ufw/user.rules", "-A ufw-user-forward -i mynet0 -j ACCEPT\n"), want: OK},
		{name: "none", check: "stale-portmap", files: conf(), crinetd: up, want: OK},
		{name: "a pod's", check: "stale-portmap", files: conf(), rules: dn, crinetd: &Crinetd{Pods: []Pod{{Addresses: []string{"10.10.0.9/24"}}}}, want: OK, found: "1 chain of portmap"},
		{name: "nobody's", check: "stale-portmap", files: conf(), rules: dn, crinetd: &Crinetd{Pods: []Pod{{Addresses: []string{"10.10.0.90/24"}}}}, want: Outcome(Warning), found: "CNI-DN-abc", mend: "iptables -t nat -F CNI-DN-abc"},
		{name: "perhaps portmap's", check: "stale-portmap", files: conf(), flags: []string{"--hostport=plugin"}, rules: dn, want: Unknown},
		{name: "there", check: "crinet-table", files: installed, rules: whole, crinetd: up, want: OK},
		{name: "gone", check: "crinet-table", files: installed, crinetd: up, want: Outcome(Error), found: "although crinetd runs", mend: "systemctl restart crinetd"},
		{name: "gone without crinetd", check: "crinet-table", files: installed, want: Outcome(Error), found: "while crinetd is not running", mend: "systemctl start crinetd"},
		{name: "hostPorts gone", check: "crinet-table", files: installed, rules: whole, crinetd: &Crinetd{Ready: true, Mapped: 2}, want: Outcome(Error), found: "has mapped 2 hostPorts, and the table inet crinet has none", mend: "nft monitor"},
		{name: "no IPVS", check: "ipvs-protected", files: installed, links: bridged(nil), want: Skipped},
		{name: "protected", check: "ipvs-protected", files: installed, links: linksOf(link(1, "kube-ipvs0", nil)), want: OK},
		{name: "not protected", check: "ipvs-protected", files: installed, flags: []string{"--hostport-protected-interfaces=lb0"}, links: linksOf(link(1, "kube-ipvs0", nil)), want: Outcome(Error), found: "=lb0 leaves out", mend: "--hostport-protected-interfaces=kube-ipvs0"},
		{name: "chains gone", check: "crinet-table", files: installed, rules: half, crinetd: up, want: Outcome(Error), found: "lacks the chains postrouting, hostports", mend: "nft monitor"},
		{name: "not since the boot", check: "crinet-table", files: conf("/etc/default/crinetd", "CRINETD_FLAGS=\n", "/proc/stat", "btime 99999999999\n", "/var/lib/crinet/journal.db", ""), want: Skipped},
		{name: "plugin maps", check: "crinet-table", files: installed, flags: []string{"--hostport=plugin"}, crinetd: up, want: Skipped},
	})
}
