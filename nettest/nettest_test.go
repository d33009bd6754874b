package nettest

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Where all is well, every step passes.
func TestAllIsWell(t *testing.T) {
	l := newLab(t)
	for step, r := range l.run() {
		if r.Status != Passed {
			t.Errorf("%s is %s: %s\n%v", step, r.Status, r.Note, r.Fault)
		}
	}
}

// Each fault fails the step that it belongs to, in words that name it and what to do.
func TestFaults(t *testing.T) {
	for name, f := range map[string]struct {
		fault func(*lab)
		step  string
		words []string
	}{
		"a rule of somebody's": {
			fault: func(l *lab) {
				l.node.sh(l.t, `nft 'add table inet mine; add chain inet mine guard { type filter hook forward priority 0; }; add rule inet mine guard ip saddr 10.99.0.2 counter drop'`)
			},
			step: "pod to outside", words: []string{`dropped by the rule "ip saddr 10.99.0.2 drop" (handle 2) in chain guard of table inet mine`, "10.99.0.0/24"},
		},
		"a rule of a bridge": {
			fault: func(l *lab) {
				l.node.sh(l.t, `nft 'add table bridge mine; add chain bridge mine guard { type filter hook forward priority 0; }; add rule bridge mine guard ip daddr 10.99.0.3 drop'`)
			},
			step: "pod to pod", words: []string{"chain guard of table bridge mine"},
		},
		"Docker's policy": {
			fault: func(l *lab) { l.node.sh(l.t, `iptables -N DOCKER-USER; iptables -P FORWARD DROP`) },
			step:  "pod to outside", words: []string{"policy of chain FORWARD of table ip filter", "Docker does it"},
		},
		"ufw's policy": {
			fault: func(l *lab) { l.node.sh(l.t, `iptables -N ufw-user-forward; iptables -P FORWARD DROP`) },
			step:  "pod to outside", words: []string{"ufw does it"},
		},
		"firewalld": {
			fault: func(l *lab) {
				l.node.sh(l.t, `nft 'add table inet firewalld; add chain inet firewalld filter_INPUT { type filter hook input priority 10; }; add rule inet firewalld filter_INPUT iifname br0 reject'`)
			},
			step: "pod to node", words: []string{"firewalld does it", "came: ", "10.99.0.0/24"},
		},
		"forwarding off": {
			fault: func(l *lab) { l.node.sh(l.t, `sysctl -qw net.ipv4.ip_forward=0`) },
			step:  "pod to outside", words: []string{"net.ipv4.ip_forward is 0, the node does not forward", "sysctl -w net.ipv4.ip_forward=1"},
		},
		"forwarding of IPv6 off": {
			fault: func(l *lab) {
				l.node.sh(l.t, `sysctl -qw net.ipv6.conf.all.forwarding=0; ip -6 route replace default via 2001:db8:100::1`)
			},
			step: "pod to outside", words: []string{"net.ipv6.conf.all.forwarding is 0", "fd00:99::2"},
		},
		"no masquerade": {
			fault: func(l *lab) { l.node.sh(l.t, `nft flush chain inet nat post`) },
			step:  "pod to outside", words: []string{"it left by eth0 with the pod's own address 10.99.0.2", "ipMasq"},
		},
		"outside is silent to the pod": {
			fault: func(l *lab) {
				l.outside.sh(l.t, `nft 'add table ip mine; add chain ip mine guard { type filter hook input priority 0; }; add rule ip mine guard ip ttl != 64 drop'`)
			},
			step: "pod to outside", words: []string{"it left by eth0 as 198.51.100.2", "beyond the node"},
		},
		"reverse path filter": {
			fault: func(l *lab) {
				l.node.sh(l.t, `sysctl -qw net.ipv4.conf.br0.rp_filter=1; ip route add 10.99.0.2/32 dev eth0`)
			},
			step: "pod to node", words: []string{"pod 1 is behind br0", "reverse path filter of br0", "would leave by eth0", "rp_filter=2"},
		},
		"narrow host's end": {
			fault: func(l *lab) {
				l.node.sh(l.t, `ip link set br0 mtu 1500; ip link set veth0 mtu 1400; ip link set br0 mtu 1500`)
			},
			step: "path MTU", words: []string{"veth0 has MTU 1400, less than the 1500 of pod 1", "of 1500 bytes"},
		},
		"narrow bridge": {
			fault: func(l *lab) { l.node.sh(l.t, `ip link set br0 mtu 1300`) },
			step:  "path MTU", words: []string{"br0 has MTU 1300", "message too long"},
		},
		"narrow uplink, ICMP dropped": {
			fault: func(l *lab) {
				l.node.sh(l.t, `ip link set eth0 mtu 1400; nft 'add table ip mine; add chain ip mine quiet { type filter hook output priority 0; }; add rule ip mine quiet icmp type destination-unreachable drop'`)
			},
			step: "path MTU", words: []string{"eth0 has MTU 1400, less than the pod's 1500", "no ICMP tells"},
		},
		"hairpin off": {
			fault: func(l *lab) {
				l.node.sh(l.t, `bridge link set dev veth0 hairpin off; sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1`)
			},
			step: "hairpin", words: []string{"hairpin mode is off on the pod's port veth0", "br0", "--hairpin-mode=hairpin-veth"},
		},
		"nobody maps": {
			fault: func(l *lab) { l.node.sh(l.t, `nft flush chain inet nat to_pod`) },
			step:  "hostPort", words: []string{"came: refused", "no rule translates 198.51.100.2:20001 to port 8080 of pod 1", "made by the lab"},
		},
		"wrong pod": {
			fault: func(l *lab) {
				l.node.sh(l.t, `nft 'flush chain inet nat to_pod; add rule inet nat to_pod meta l4proto tcp dnat ip to 10.99.0.3:8080'`)
			},
			step: "hostPort", words: []string{"another answers", "pod 2"},
		},
		"no loopback": {
			fault: func(l *lab) { l.node.sh(l.t, `sysctl -qw net.ipv4.conf.br0.route_localnet=0`) },
			step:  "hostPort by 127.0.0.1", words: []string{"127.0.0.1:20001", "net.ipv4.conf.br0.route_localnet is 0"},
		},
		"pod without a route": {
			fault: func(l *lab) { l.pods[0].sh(l.t, `ip route del default`) },
			step:  "pod to node", words: []string{"it has no route to 198.51.100.2", "isDefaultGateway"},
		},
		"a gateway that is not there": {
			fault: func(l *lab) { l.pods[0].sh(l.t, `ip route replace default via 10.99.0.77`) },
			step:  "pod to node", words: []string{"nobody answers for the gateway 10.99.0.77"},
		},
		"the host's end is down": {
			fault: func(l *lab) { l.node.sh(l.t, `ip link set veth1 down`) },
			step:  "node to pod", words: []string{"the host's end of pod 2, veth1, is down"},
		},
		"off the bridge": {
			fault: func(l *lab) {
				l.config.Begin = func(step string) {
					if step == "node to pod" {
						l.node.sh(l.t, `ip link set veth0 nomaster`)
					}
				}
			},
			step: "node to pod", words: []string{"veth0 was taken off its bridge"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			f.fault(l)
			results := l.run()
			r := results[f.step]
			if r.Status != Failed {
				t.Fatalf("%s is %s: %s", f.step, r.Status, r.Note)
			}
			told := r.Fault.String()
			t.Logf("%s\n%s", f.step, told)
			for _, want := range f.words {
				if !strings.Contains(told, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if len(r.Fault.Do) == 0 || r.Fault.Lost == "" {
				t.Error("it does not say where the packet was lost, and what to do")
			}
			if tables := l.node.sh(t, "nft list tables"); strings.Contains(tables, TraceTable) {
				t.Errorf("the trace's table is left: %s", tables)
			}
		})
	}
}

// The way outside is judged by a gateway that answers the node, by ping or by TCP, and
// not at all where none does.
func TestOutside(t *testing.T) {
	const quiet = `nft 'add table inet quiet; add chain inet quiet in { type filter hook input priority 0; }; add rule inet quiet in %s; add rule inet quiet in %s'`
	for name, c := range map[string]struct {
		change func(*lab)
		status Status
		words  []string
	}{
		"by TCP": {
			change: func(l *lab) {
				l.outside.sh(l.t, quiet, "icmp type echo-request drop", "icmpv6 type echo-request drop")
			},
			status: Passed, words: []string{"TCP over IPv4", "TCP over IPv6"},
		},
		"IPv6 is silent": {
			change: func(l *lab) {
				l.outside.sh(l.t, quiet, "icmpv6 type echo-request drop", "ip6 nexthdr tcp drop")
			},
			status: Passed, words: []string{"ICMP over IPv4; not tried: the default gateway for IPv6, 2001:db8:100::1, does not answer the node itself"},
		},
		"no gateway": {
			change: func(l *lab) { l.node.sh(l.t, "ip route del default; ip -6 route del default") },
			status: Skipped, words: []string{"no default gateway for IPv4", "no default gateway for IPv6"},
		},
		"a gateway on the link only": {
			change: func(l *lab) {
				l.node.sh(l.t, "ip route del default; ip -6 route replace default via fe80::1 dev eth0")
			},
			status: Skipped, words: []string{"fe80::1%eth0, can be reached on its link only"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			c.change(l)
			r := l.run()["pod to outside"]
			for _, want := range c.words {
				if r.Status != c.status || !strings.Contains(r.Note, want) {
					t.Errorf("it is %s: %s, want %s: %s\n%v", r.Status, r.Note, c.status, want, r.Fault)
				}
			}
		})
	}
}

// Without hostPorts their steps say why, and the others are done.
func TestWithoutHostPorts(t *testing.T) {
	l := newLab(t)
	l.config.HostPort, l.config.NoHostPort = 0, "--hostport is off"
	results := l.run()
	for _, step := range []string{"hairpin", "hostPort", "hostPort by 127.0.0.1"} {
		if r := results[step]; r.Status != Skipped || r.Note != "--hostport is off" {
			t.Errorf("%s is %s: %s", step, r.Status, r.Note)
		}
	}
	if r := results["path MTU"]; r.Status != Passed {
		t.Errorf("path MTU is %s: %v", r.Status, r.Fault)
	}
}

// spaceVariable names an environment variable: the namespace in which the test's own
// program traces until it is killed.
const spaceVariable = "CRINET_TEST_TRACE_IN"

// The trace's table goes with the process that made it, however that ends.
func TestTraceGoesWithItsProcess(t *testing.T) {
	if path := os.Getenv(spaceVariable); path != "" {
		traceForever(path)
	}
	node := newSpace(t)
	child := exec.Command(os.Args[0], "-test.run=^TestTraceGoesWithItsProcess$")
	child.Env = append(os.Environ(), spaceVariable+"="+node.path())
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	tables := node.sh(t, "nft list tables")
	if err != nil || line != "tracing\n" || !strings.Contains(tables, "inet "+TraceTable) {
		t.Errorf("the child says %q, %v; tables: %s", line, err, tables)
	}
	if err := child.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = child.Wait() // it was killed
	if tables := node.sh(t, "nft list tables"); strings.Contains(tables, TraceTable) {
		t.Errorf("left is %s", tables)
	}
}

// traceForever traces in a namespace and says so.
func traceForever(path string) {
	file, err := os.Open(path)
	if err == nil {
		_, err = startTrace(NewSpace(file), traceFilter{addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, ports: []uint16{80}})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("tracing")
	select {}
}

// Traces finds each kind of thing that an attachment can leave.
func TestLeft(t *testing.T) {
	l := newLab(t)
	traces, err := NewTraces(l.node)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const id = "crinet-test-1-ABCDEF"
	space := filepath.Join(dir, "netns")
	traces.Note(l.config.Pods[0], id, space, "net", fmt.Appendf(nil, `{"plugins": [{"type": "bridge", "ipam": {"type": "host-local", "dataDir": %q}}]}`, dir))
	kinds := map[string]struct{ leave, mend func() }{
		"the interface veth0": {func() {}, func() { l.node.sh(t, "ip link del veth0") }},
		"the network namespace " + space: {
			func() { mustWrite(t, space, "") },
			func() { _ = os.Remove(space) }, // Left tells if it is there
		},
		"host-local's file " + dir + "/net/10.99.0.2": {
			func() { mustWrite(t, dir+"/net/10.99.0.2", id+"\r\neth0") },
			func() { mustWrite(t, dir+"/net/10.99.0.2", "another\r\neth0") },
		},
		"a rule that names " + id: {
			func() {
				l.node.sh(t, `nft 'add table ip cni; add chain ip cni post; add rule ip cni post counter comment "id: %s"'`, id)
			},
			func() { l.node.sh(t, "nft delete table ip cni") },
		},
		"an element of the set hairpin in table inet crinet": {
			func() {
				l.node.sh(t, `nft 'add table inet crinet; add set inet crinet hairpin { type ipv4_addr; }; add element inet crinet hairpin { 10.99.0.2 }'`)
			},
			func() { l.node.sh(t, "nft flush set inet crinet hairpin") },
		},
	}
	for _, k := range kinds {
		k.leave()
	}
	left := traces.Left(t.Context())
	for kind, k := range kinds {
		if !slices.Contains(left, kind) {
			t.Errorf("%s is not found: %q", kind, left)
		}
		k.mend()
	}
	l.node.sh(t, "ip link add new0 type bridge")
	if left := traces.Left(t.Context()); len(left) != 0 {
		t.Errorf("still found: %q", left)
	}
	if stay := traces.Stay(); !slices.Equal(stay, []string{"new0"}) {
		t.Errorf("new bridges: %q", stay)
	}
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// What the kernel or others say is made fit for a terminal.
func TestPlain(t *testing.T) {
	if got := Plain("a\x1b[31m\nb\u009bc ö"); got != "a [31m b c ö" {
		t.Errorf("it is %q", got)
	}
}
