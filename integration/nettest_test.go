package integration_test

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
	"github.com/crinet-project/crinet/nettest"
)

// nettestNetworks are networks on which everything works.
var nettestNetworks = map[string]string{
	"bridge": seedBridge,
	"dual stack": `{
	"cniVersion": "1.0.0", "name": "dual",
	"plugins": [{"type": "bridge", "bridge": "dual0", "isDefaultGateway": true, "ipMasq": true,
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.20.0.0/24"}], [{"subnet": "fd00:20::/64"}]]}}]
}`,
	"IPv6 only": `{
	"cniVersion": "1.0.0", "name": "six",
	"plugins": [{"type": "bridge", "bridge": "six0", "isDefaultGateway": true, "ipMasq": true,
		"ipam": {"type": "host-local", "subnet": "fd00:24::/64"}}]
}`,
	"executed": `{
	"cniVersion": "1.0.0", "name": "executed",
	"plugins": [{"type": "bridge", "bridge": "executed0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "subnet": "10.22.0.0/24"}}]
}`,
	"portmap": `{
	"cniVersion": "1.0.0", "name": "portmap",
	"plugins": [{"type": "bridge", "bridge": "portmap0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "subnet": "10.23.0.0/24"}},
		{"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]
}`,
	"ptp": `{
	"cniVersion": "1.0.0", "name": "points",
	"plugins": [{"type": "ptp", "ipMasq": true, "mtu": 1400,
		"ipam": {"type": "host-local", "subnet": "10.21.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]
}`,
	"scripted": strings.Replace(recordedBridge, `"isDefaultGateway"`, `"ipMasq": true, "isDefaultGateway"`, 1),
}

// nettestFlags are flags of crinetd for some of the networks.
var nettestFlags = map[string][]string{
	"executed": {"--builtin-plugins=off"},
	"portmap":  {"--hostport=plugin"},
}

// connectivity is what crinetctl test -o json prints.
type connectivity struct {
	Network   string           `json:"network"`
	File      string           `json:"file"`
	Candidate bool             `json:"candidate"`
	Passed    bool             `json:"passed"`
	Seconds   float64          `json:"seconds"`
	Steps     []nettest.Result `json:"steps"`
}

// nettestMost is how long crinetctl test may take here; on a machine of its own it
// is done within 10 s.
const nettestMost = 25 * time.Second

// connectivity runs crinetctl test.
func (n *testNode) connectivity(args ...string) (all connectivity) {
	n.t.Helper()
	start := time.Now()
	out, err := n.Crinetctl(n.ctx, append([]string{"test", "-o", "json"}, args...)...)
	if took := time.Since(start); took > nettestMost {
		n.t.Errorf("crinetctl test took %s", took)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	n.ok(err)
	n.ok(json.Unmarshal([]byte(out), &all))
	return all
}

// newNettestNode starts a node with a network and crinetd, without a runtime.
func newNettestNode(t *testing.T, conf string, flags ...string) *testNode {
	t.Helper()
	n := newNode(t)
	file := "10-network.conf"
	if strings.Contains(conf, `"plugins"`) {
		file = "10-network.conflist"
	}
	n.ok(n.InstallPlugin("testplugin", kit.Program("testplugin")))
	n.ok(n.WriteConf(file, conf))
	n.ok(n.StartCrinetd(n.ctx, slices.Concat(runtimeFlags, cniFlags, flags)...))
	n.awaitSelected()
	return n
}

func (n *testNode) awaitSelected() {
	n.t.Helper()
	n.eventually("a network is selected", func() bool {
		out, err := n.Crinetctl(n.ctx, "status")
		return err == nil && strings.Contains(out, "Selected as:")
	})
}

// failed returns the steps that failed, by name, with all of their words.
func (c connectivity) failed() map[string]string {
	failed := make(map[string]string)
	for _, r := range c.Steps {
		if r.Status == nettest.Failed {
			failed[r.Step] = r.Fault.String()
		}
	}
	return failed
}

// On a node where all is well every step passes, and nothing is left.
func TestConnectivity(t *testing.T) {
	t.Parallel()
	for name, conf := range nettestNetworks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNettestNode(t, conf, nettestFlags[name]...)
			all := n.connectivity()
			skipped := map[string]string{
				"bridge":    "CHECK", // the seed's CNI version has none
				"IPv6 only": "hostPort by 127.0.0.1",
			}[name]
			for _, r := range all.Steps {
				if (r.Step == skipped) != (r.Status == nettest.Skipped) || r.Status == nettest.Failed {
					t.Errorf("%s is %s: %s", r.Step, r.Status, cmp.Or(r.Note, fmt.Sprint(r.Fault)))
				}
			}
			if !all.Passed || len(all.Steps) != 12 || all.Candidate {
				t.Errorf("the test shows %+v", all)
			}
			out, err := n.Crinetctl(n.ctx, "test")
			if err != nil || !strings.Contains(out, "12 passed, 0 skipped, 0 failed") && !strings.Contains(out, "11 passed, 1 skipped, 0 failed") {
				t.Errorf("crinetctl test prints %s\n%v", out, err)
			}
			if mapper := "mapped by " + map[bool]string{true: "plugin", false: "crinetd"}[name == "portmap"]; !strings.Contains(out, mapper) {
				t.Errorf("crinetctl test does not say %q:\n%s", mapper, out)
			}
			n.noLeftovers()
		})
	}
}

// A network whose pods the kernel keeps apart from the node is tested as far as it can
// be, and the skipped steps say why. The same holds without hostPorts.
func TestConnectivityIsSkippedWithReason(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, `{"cniVersion": "1.0.0", "name": "beside", "plugins": [{"type": "macvlan", "master": "eth0",
		"ipam": {"type": "host-local", "subnet": "198.51.100.0/24", "rangeStart": "198.51.100.100", "gateway": "198.51.100.1", "routes": [{"dst": "0.0.0.0/0"}]}}]}`,
		"--hostport=off")
	all := n.connectivity()
	want := map[string]string{
		"pod to node": "macvlan", "node to pod": "macvlan",
		"hairpin": "--hostport", "hostPort": "--hostport", "hostPort by 127.0.0.1": "--hostport",
	}
	for _, r := range all.Steps {
		if why := want[r.Step]; (why != "") != (r.Status == nettest.Skipped) || !strings.Contains(r.Note, why) {
			t.Errorf("%s is %s: %s", r.Step, r.Status, cmp.Or(r.Note, fmt.Sprint(r.Fault)))
		}
	}
	n.noLeftovers()
}

// nettestBridge is a network on a bridge that the test has made before, without what
// the plugin would set right. gateway is the pods'.
func nettestBridge(name, subnet, gateway, more string) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [{"type": "bridge", "bridge": %q, %s
		"ipam": {"type": "host-local", "ranges": [[{"subnet": %q, "rangeStart": "10.30.0.10", "gateway": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`,
		name, name, more, subnet, gateway)
}

// Each fault is named by the step that it breaks, with where the packet was lost and
// what to do. Afterwards nothing is left, and without the fault all passes again.
func TestConnectivityFaults(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, nettestNetworks["dual stack"])
	made := "ip link add made0 address 02:00:00:00:00:30 type bridge; ip addr add 10.30.0.1/24 dev made0; ip link set made0 up; "
	faults := map[string]struct {
		candidate   string
		fault, mend string
		step        string
		words       []string
	}{
		"forward policy of nftables": {
			fault: "nft 'add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }'",
			mend:  "nft delete table inet fw",
			step:  "pod to outside", words: []string{"dropped by the policy of chain forward of table inet fw", "ICMP echo from pod 1 (10.20.0.", node.OutsideIPv4, "10.20.0.0/24"},
		},
		"forward policy of iptables": {
			fault: "iptables -P FORWARD DROP", mend: "iptables -P FORWARD ACCEPT",
			step: "pod to outside", words: []string{"the policy of chain FORWARD of table ip filter", "iptables -P FORWARD ACCEPT"},
		},
		"a user's rule": {
			fault: "nft 'add table ip mine; add chain ip mine guard { type filter hook input priority 10; }; add rule ip mine guard ip saddr 10.20.0.0/24 udp dport 1-65535 counter drop'",
			mend:  "nft delete table ip mine",
			step:  "pod to node", words: []string{"UDP from pod 1", "dropped by the rule", "ip saddr 10.20.0.0/24", "drop", "handle", "chain guard of table ip mine"},
		},
		"the answer is dropped": {
			fault: "nft 'add table ip mine; add chain ip mine guard { type filter hook input priority 10; }; add rule ip mine guard ip saddr 10.20.0.0/24 tcp sport 8080 reject'",
			mend:  "nft delete table ip mine",
			step:  "node to pod", words: []string{"TCP from the node", "the answer was dropped by the rule", "chain guard of table ip mine"},
		},
		"no masquerade": {
			candidate: `{"cniVersion": "1.0.0", "name": "nomasq", "plugins": [{"type": "bridge", "bridge": "nomasq0", "isDefaultGateway": true,
				"ipam": {"type": "host-local", "subnet": "10.31.0.0/24"}}]}`,
			mend: "ip link del nomasq0",
			step: "pod to outside", words: []string{"it left by eth0 with the pod's own address 10.31.0.", "nobody masquerades", "ipMasq"},
		},
		"forwarding off": {
			candidate: nettestBridge("made0", "10.30.0.0/24", "10.30.0.1", `"ipMasq": true,`),
			fault:     made + "sysctl -qw net.ipv4.ip_forward=0", mend: "sysctl -qw net.ipv4.ip_forward=1; ip link del made0",
			step: "pod to outside", words: []string{"net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1"},
		},
		"reverse path filter": {
			candidate: nettestBridge("made0", "10.30.0.0/24", "10.30.0.1", `"ipMasq": true,`),
			fault:     made + "sysctl -qw net.ipv4.conf.made0.rp_filter=1; ip route add 10.30.0.0/25 dev eth0", mend: "ip link del made0; ip route del 10.30.0.0/25",
			step: "pod to node", words: []string{"reverse path filter of made0", "would leave by eth0", "rp_filter=2"},
		},
		"a bridge that is too narrow": {
			candidate: nettestBridge("made0", "10.30.0.0/24", "10.30.0.1", `"ipMasq": true,`),
			fault:     made + "ip link set made0 mtu 1400", mend: "ip link del made0",
			step: "path MTU", words: []string{"made0 has MTU 1400, less than the 1500 of pod 1", "mtu in the network's configuration"},
		},
		"a pod has the node's address": {
			candidate: strings.Replace(nettestBridge("made0", "10.30.0.0/24", "10.30.0.99", `"ipMasq": true,`), `"rangeStart": "10.30.0.10"`, `"rangeStart": "10.30.0.1", "rangeEnd": "10.30.0.2"`, 1),
			fault:     made, mend: "ip link del made0",
			step: "node to pod", words: []string{"10.30.0.1, the address of pod 1, is the node's own as well"},
		},
		"a broken gateway": {
			candidate: nettestBridge("made0", "10.30.0.0/24", "10.30.0.99", `"ipMasq": true,`),
			fault:     made, mend: "ip link del made0",
			step: "pod to node", words: []string{"nobody answers for the gateway 10.30.0.99", "isGateway"},
		},
	}
	defer func() { n.t = t }()
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			var args []string
			if f.candidate != "" {
				n.ok(n.WriteFile("/run/candidate.conflist", f.candidate))
				args = []string{"/run/candidate.conflist"}
			}
			n.t = t // of this subtest
			n.sh("%s", f.fault)
			all := n.connectivity(args...)
			n.sh("%s", f.mend)
			failed := all.failed()
			told := failed[f.step]
			t.Logf("%s:\n%s", f.step, told)
			for _, want := range f.words {
				if !strings.Contains(told, want) {
					t.Errorf("step %s does not say %q: all that failed: %q", f.step, want, failed)
				}
			}
			for _, step := range []string{"ADD", "CHECK", "DEL", "nothing left"} {
				if failed[step] != "" {
					t.Errorf("%s fails: %s", step, failed[step])
				}
			}
			if all.Seconds > nettestMost.Seconds() || all.Candidate != (f.candidate != "") {
				t.Errorf("it took %.1f s, candidate %v", all.Seconds, all.Candidate)
			}
			t.Logf("%d steps failed, %.1f s", len(failed), all.Seconds)
			if tables := n.sh("nft list tables"); strings.Contains(tables, nettest.TraceTable) {
				t.Errorf("the trace's table is left: %s", tables)
			}
			n.clean()
		})
	}
	n.t = t
	if all := n.connectivity(); !all.Passed {
		t.Errorf("with all mended: %q", all.failed())
	}
}

// A pod that its bridge does not give its own frames is told of, with the flag.
func TestConnectivityWithoutHairpin(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, nettestNetworks["dual stack"], "--hairpin-mode=none")
	n.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
	failed := n.connectivity().failed()
	for _, want := range []string{"hairpin mode is off on the pod's port", "dual0", "--hairpin-mode=hairpin-veth"} {
		if len(failed) != 1 || !strings.Contains(failed["hairpin"], want) {
			t.Errorf("step hairpin does not say %q: %q", want, failed)
		}
	}
	n.clean()
}

// Without the table of hostPorts, and a crinetd that could put it back, the hostPort's
// steps say that nothing translates it.
func TestConnectivityWithoutTheTable(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, seedBridge)
	// The step that fails for this takes long enough for what follows.
	n.sh("nft 'add table ip slow; add chain ip slow forward { type filter hook forward priority 0; }; add rule ip slow forward icmp type echo-request drop'")
	cmd := n.Command(n.ctx, kit.Crinet("crinetctl"), "test")
	stdout, err := cmd.StdoutPipe()
	n.ok(err)
	n.ok(n.Start(cmd))
	pid, err := n.CrinetdPID()
	n.ok(err)
	defer func() { _ = unix.Kill(pid, unix.SIGCONT) }() // it may go on already
	var told strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		told.WriteString(lines.Text() + "\n")
		switch step := lines.Text(); {
		case strings.HasPrefix(step, "pod to pod "):
			n.ok(unix.Kill(pid, unix.SIGSTOP))
			n.sh("nft delete table inet crinet")
		case strings.HasPrefix(step, "path MTU "):
			n.ok(unix.Kill(pid, unix.SIGCONT))
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("crinetctl test passes")
	}
	for _, want := range []string{"no rule translates 198.51.100.2:", "crinetd puts its table inet crinet right"} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, told.String())
		}
	}
	n.sh("nft delete table ip slow")
	n.eventually("the table is back", func() bool { return strings.Contains(n.sh("nft list tables"), "inet crinet") })
	if all := n.connectivity(); !all.Passed {
		t.Errorf("afterwards: %q", all.failed())
	}
	n.clean()
}

// A plugin that fails a verb is quoted, the other steps are done as far as they can
// be, and nothing is left once it works.
func TestConnectivityOfAPluginThatFails(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, nettestNetworks["scripted"])
	for verb, steps := range map[string]int{"ADD": 4, "CHECK": 12, "DEL": 12} {
		n.setRules(script.Rule{Verb: verb, Do: script.Fail, Text: "the tide is \x1b[31mout"})
		all := n.connectivity()
		failed := all.failed()
		if len(all.Steps) != steps || all.Network != "recorded" || !strings.Contains(failed[verb], "the tide is") || strings.Contains(failed[verb], "\x1b") {
			t.Errorf("%s fails: %d steps, %q", verb, len(all.Steps), failed)
		}
		if verb == "DEL" && !strings.Contains(failed["nothing left"], "journal") {
			t.Errorf("after a DEL that fails nothing is told to be left: %q", failed)
		}
		n.setRules()
		n.clean()
	}
	if all := n.connectivity(); !all.Passed {
		t.Errorf("with a plugin that works: %q", all.failed())
	}
}

// A candidate is tested before it is in the conf dir, and the selected network stays
// as it is. One that cannot be used is refused with file and line.
func TestConnectivityOfACandidate(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, seedBridge)
	const file = "/run/candidates/20-next.conflist"
	n.ok(n.WriteFile(file, nettestNetworks["ptp"]))
	if all := n.connectivity(file); !all.Passed || all.Network != "points" || all.File != file || !all.Candidate {
		t.Errorf("a good candidate shows %+v", all)
	}
	if out, err := n.Crinetctl(n.ctx, "status"); err != nil || !strings.Contains(out, "mynet (") || strings.Contains(out, "points") {
		t.Errorf("after the test crinetctl status says %s, %v", out, err)
	}
	n.clean()
	for conf, want := range map[string]string{
		"{\n \"name\": \"a\",\n \"plugins\": [,]\n}":                                file + ":3:14: is broken",
		`{"cniVersion": "1.0.0", "name": "lacks", "plugins": [{"type": "nosuch"}]}`: file + ": plugin nosuch is not in " + node.BinDir,
		`{"cniVersion": "1.0.0", "name": "own", "plugins": [{"type": "crinet"}]}`:   "crinet's own shim",
	} {
		n.ok(n.WriteFile(file, conf))
		if out, err := n.Crinetctl(n.ctx, "test", file); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("candidate %s: %s, %v, want %q", conf, out, err, want)
		}
	}
	if _, err := n.Crinetctl(n.ctx, "test", file, file); err == nil || !strings.Contains(err.Error(), "exit status 2") {
		t.Errorf("two candidates: %v", err)
	}
	n.ok(n.StopCrinetd())
	if _, err := n.Crinetctl(n.ctx, "test"); err == nil || !strings.Contains(err.Error(), "needs a running crinetd") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("without crinetd: %v", err)
	}
}

// Killed in the middle, crinetctl leaves nothing: crinetd takes all back. Killed with
// -9, crinetd leaves nothing once it is back. Meanwhile nobody else may borrow.
func TestConnectivityKilled(t *testing.T) {
	t.Parallel()
	n := newNettestNode(t, nettestNetworks["scripted"])
	for _, verb := range []string{"ADD", "CHECK"} {
		for _, killed := range []string{"crinetctl", "crinetd"} {
			n.setRules(script.Rule{Verb: verb, Do: script.Hang})
			before := len(n.calls(verb))
			cmd := n.Command(n.ctx, kit.Crinet("crinetctl"), "test")
			var said strings.Builder
			cmd.Stderr = &said
			n.ok(n.Start(cmd))
			n.eventually("crinetctl's attachment is in the making", func() bool { return len(n.calls(verb)) > before })
			if left := n.traces(); !strings.Contains(strings.Join(left, "\n"), "crinet-test-1-") {
				t.Errorf("nothing is there that the kill could leave: %q", left)
			}
			if _, err := n.Crinetctl(n.ctx, "test"); err == nil || !strings.Contains(err.Error(), "lends throwaway attachments already: to crinetctl test, process") {
				t.Errorf("a second test: %v", err)
			}
			if killed == "crinetctl" {
				n.ok(cmd.Process.Kill())
			} else {
				n.ok(n.KillCrinetd())
			}
			err := cmd.Wait()
			if killed == "crinetd" && (err == nil || !strings.Contains(said.String(), "failed")) {
				t.Errorf("crinetctl ends with %v: %s", err, said.String())
			}
			n.setRules()
			if killed == "crinetd" {
				n.ok(n.StartCrinetd(n.ctx, slices.Concat(runtimeFlags, cniFlags)...))
				n.awaitSelected()
			}
			n.clean()
		}
	}
	if all := n.connectivity(); !all.Passed {
		t.Errorf("afterwards: %q", all.failed())
	}
}
