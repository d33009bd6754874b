package why

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/crinet-project/crinet/runtime/recorder"
)

// class is a class of errors, and the mend for it.
type class struct {
	// signs are parts of such errors, in lower case; one is enough.
	signs []string
	mend  func(c *clue) []string
}

// clue is an error and what is known beside it.
type clue struct {
	text    string // the error
	sandbox *Sandbox
	plugin  string // that failed, or hangs; empty if it is not known
}

// always is a mend that does not depend on the case.
func always(mends ...string) func(*clue) []string { return func(*clue) []string { return mends } }

// classes are all classes of errors that are known, the more specific ones first.
func classes() []class {
	return []class{
		{[]string{"is held by"}, (*clue).portTaken},
		{[]string{"no space left on device", "disk quota exceeded"}, always(
			"Make room on the disk: df -h and df -i of --state-dir (/var/lib/crinet), /var/lib/cni and /tmp show which one is full. The kubelet tries the pod again by itself.")},
		{[]string{"read-only file system"}, always(
			"The file system was mounted read-only, mostly after an error of the disk: see dmesg, repair it, mount it read-write, and restart crinetd.")},
		{[]string{"no ip addresses available in range set"}, (*clue).rangeExhausted},
		{[]string{"dhcp.sock", "dhcp daemon", "dhcp.allocate"}, always(
			"The IPAM plugin dhcp needs its daemon: systemctl enable --now cni-dhcp.socket, or see the line dhcp daemon of crinetctl status for why crinetd could not start one. " +
				"If the daemon runs, see whether a DHCP server answers on the link.")},
		{[]string{"subnet.env"}, always(
			"flanneld has not written its file yet: see whether its pod runs on this node and what it logs (kubectl -n kube-flannel get pods -o wide). The kubelet tries this pod again by itself.")},
		{[]string{"no executable of that name", "failed to find plugin", " is not in /"}, (*clue).pluginMissing},
		{[]string{"iptables", "ip6tables", "xtables"}, (*clue).toolMissing},
		{[]string{"\"nft\"", "nft:", "nf_tables"}, (*clue).toolMissing},
		{[]string{"does not have that plugin", "cannot be started"}, (*clue).pluginMissing},
		{[]string{"and hangs", "did not finish in time", "deadline exceeded", "given up on add", "gave up waiting", "timed out", "timeout", "context canceled"}, (*clue).hangs},
		{[]string{"without calling crinet"}, always(
			"The container runtime used another CNI configuration than crinet's, so that the pod has no hostPorts of crinet's: crinetctl status, line Runtime, says which file it loaded. " +
				"Remove that file from the runtime's conf dir or have it sorted after 00-crinet.conflist, and delete the pod.")},
		{[]string{"the runtime's side:"}, always(
			"The error names the directory or the setting of the container runtime to change; crinetctl status, line Runtime, shows both sides. Then the pod comes up by itself.")},
		{[]string{"(--network-wait)"}, always(
			"The node was rebooted, and the network of before is not there yet: see whether its agent runs on this node (its DaemonSet's pod) and puts its file and plugins there. " +
				"If it is gone for good: restart crinetd with --network-wait=0s, or have --network-plugin name the network.")},
		{[]string{"pod cidr"}, always(
			"The node's pod CIDR is not known: see kubectl get node -o jsonpath={.spec.podCIDRs}; if it is empty, the controller manager needs --allocate-node-cidrs, or set --pod-cidr of crinetd.")},
		{[]string{"no usable cni network", "is broken", "unexpected end of json", "invalid character", "cannot unmarshal", "unknown field", "error parsing"}, (*clue).configuration},
		{[]string{"is no network namespace", "open netns", "no such device", "namespace is gone"}, always(
			"The sandbox's network namespace or interface is gone: somebody removed it, or the runtime was restarted without its state. Delete the pod: its controller makes a new one.")},
		{[]string{"already has an ip address different", "exists with another", "it has the address"}, (*clue).bridgeAddress},
		{[]string{"permission denied", "operation not permitted"}, always(
			"crinetd or a plugin lacks a right: both must run as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN. See the rights of the file that the error names, SELinux or AppArmor (ausearch -m avc, dmesg), and drop-ins of crinetd.service.")},
		{[]string{"connection refused", "no such host", "i/o timeout", "no route to host"}, (*clue).agent},
		{[]string{"crinetd ended while"}, always(
			"Nothing: the kubelet tries again by itself. See journalctl -u crinetd for why crinetd ended.")},
		{[]string{"adds of network"}, always(
			"The newest failure that the message names is the cause; crinetd tries the network by itself until it works.")},
		{[]string{"hostports can't be mapped"}, always(
			"The message names what the kernel lacks for hostPorts; docs/compatibility.md lists what is needed. Pods without hostPorts run.")},
		{[]string{"not ready", "try again"}, always(
			"The network is not ready for new pods yet: crinetctl status says why. The kubelet tries the pod again by itself.")},
	}
}

// hint returns what to do about an error.
func hint(text string, s *Sandbox) []string {
	c := &clue{text: text, sandbox: s, plugin: failedPlugin(text, s)}
	lower := strings.ToLower(text)
	for _, class := range classes() {
		for _, sign := range class.signs {
			if strings.Contains(lower, sign) {
				return class.mend(c)
			}
		}
	}
	if c.plugin != "" {
		return []string{fmt.Sprintf("The words are those of plugin %s: see its documentation and the log of its agent, if it has one. "+
			"crinetctl why -o json shows all that it was given and said. The kubelet tries again by itself.", c.plugin)}
	}
	return []string{"See crinetctl status and the log of crinetd (journalctl -u crinetd) around that time. The kubelet tries again by itself."}
}

// failedPlugin is the plugin that failed first or still runs, or else the one that the
// error names.
func failedPlugin(text string, s *Sandbox) string {
	if o := s.Decisive(); o != nil {
		for _, run := range o.Runs {
			if run.Err != "" || run.Running {
				return run.Type
			}
		}
	}
	if m := regexp.MustCompile(`plugin "?([A-Za-z0-9._/-]+)"?[: ]`).FindStringSubmatch(text); m != nil {
		return filepath.Base(m[1])
	}
	return ""
}

// Decisive is the operation that says how the sandbox is: the one under way, an ADD
// that failed, the last one if that failed, or else the ADD; nil if none is recorded.
func (s *Sandbox) Decisive() *recorder.Operation {
	if o := s.underWay(); o != nil {
		return o
	}
	add := s.last(recorder.Add)
	last := s.last(recorder.Add, recorder.Del, recorder.Check, recorder.RunPodSandbox)
	if add == nil || last.Failed() && !add.Failed() {
		return last
	}
	return add
}

// file names the network's configuration.
func (c *clue) file() string {
	if c.sandbox.File != "" {
		return c.sandbox.File
	}
	return "the network's file in --cni-conf-dir (/etc/cni/net.d)"
}

func (c *clue) portTaken() []string {
	m := regexp.MustCompile(`hostPort (\S+ \S+) is held by ([^;\n]+)`).FindStringSubmatch(c.text)
	if m == nil {
		return []string{"Give the pod another hostPort, or have whoever holds it end."}
	}
	mends := []string{fmt.Sprintf("Free hostPort %s, which %s holds, or give this pod another hostPort or another node; the kubelet tries again by itself.", m[1], m[2])}
	if strings.Contains(m[2], "pod ") {
		return append(mends, "crinetctl pods lists all hostPorts of this node.")
	}
	return append(mends, "If the process may lose the port to the pod: --hostport-conflict=warn.")
}

func (c *clue) rangeExhausted() []string {
	network := c.sandbox.Network
	if network == "" {
		network = "NETWORK"
	}
	return []string{
		fmt.Sprintf("All addresses of network %s are taken: make its range larger (subnet, rangeStart and rangeEnd in %s), or have fewer pods on the node.", network, c.file()),
		fmt.Sprintf("If there are fewer pods than addresses, some leaked: the files in /var/lib/cni/networks/%s (or the configuration's dataDir) have the id of the sandbox that holds each; "+
			"remove those whose sandbox crictl pods does not list.", network),
	}
}

func (c *clue) pluginMissing() []string {
	// A plugin may miss another one, such as its IPAM plugin.
	for _, missing := range []string{`failed to find plugin \\*"([^"\\]+)`, `plugin ([^ :]+): no executable of that name`, `plugin ([^ :]+) is not in /`} {
		if m := regexp.MustCompile(missing).FindStringSubmatch(c.text); m != nil {
			c.plugin = m[1]
		}
	}
	if c.plugin == "" {
		return []string{"Install the plugin's binary, executable, into a directory of --cni-bin-dir; crinetctl probe shows what is there."}
	}
	return []string{fmt.Sprintf("Install the plugin %s, executable and for this machine's architecture, into a directory of --cni-bin-dir; crinetctl probe shows what is there. "+
		"The kubelet tries again by itself.", c.plugin)}
}

func (c *clue) toolMissing() []string {
	lower := strings.ToLower(c.text)
	if strings.Contains(lower, "not found") || strings.Contains(lower, "no such file") {
		return []string{fmt.Sprintf("Plugin %s needs iptables (or nft), and it is not there: install the package iptables (or nftables) on the node, in the PATH of crinetd.service.", c.name())}
	}
	return []string{fmt.Sprintf("Plugin %s could not change the packet filter: see whether iptables -L -t nat (or nft list ruleset) works on the node, whether the kernel has the modules, and who else holds the lock (iptables -w).", c.name())}
}

func (c *clue) name() string {
	if c.plugin == "" {
		return "(unknown)"
	}
	return c.plugin
}

func (c *clue) hangs() []string {
	if c.plugin == "" {
		return []string{"Something did not answer in time: see crinetctl status and the load of the node. The kubelet tries again by itself."}
	}
	if c.usesDHCP() {
		return []string{
			fmt.Sprintf("No DHCP server has answered: plugin %s has its address from one. See whether it runs and hears this node (tcpdump -ni any port 67 or port 68), and whether its pool has an address left.", c.plugin),
			"crinetd ends the plugin after --cni-timeout, and the kubelet tries again by itself.",
		}
	}
	return []string{
		fmt.Sprintf("Plugin %s hangs: mostly what it asks does not answer, such as its agent, the API server or a datastore. See whether that runs and can be reached from this node.", c.plugin),
		"crinetd ends the plugin after --cni-timeout, and the kubelet tries again by itself.",
	}
}

// usesDHCP says whether the plugin that hangs has its address from a DHCP server.
func (c *clue) usesDHCP() bool {
	o := c.sandbox.Decisive()
	if o == nil {
		return false
	}
	for _, run := range o.Runs {
		var conf struct {
			IPAM struct{ Type string } `json:"ipam"`
		}
		if run.Type == c.plugin && json.Unmarshal(run.Config, &conf) == nil && conf.IPAM.Type == "dhcp" {
			return true
		}
	}
	return false
}

func (c *clue) configuration() []string {
	return []string{fmt.Sprintf("Correct the configuration: crinetctl validate FILE names the place in %s, and crinetctl status lists all files that cannot be used. It is read again by itself.", c.file())}
}

func (c *clue) bridgeAddress() []string {
	return []string{fmt.Sprintf("The bridge has the gateway's address of another subnet: two networks use one bridge, or the subnet in %s was changed. Give the network a bridge of its own (\"bridge\"), "+
		"or, when no pod is on it any more, ip link del the bridge.", c.file())}
}

func (c *clue) agent() []string {
	if c.plugin == "" {
		return []string{"Something could not be reached: the error names it. See whether it runs, and the routes and DNS of the node."}
	}
	return []string{fmt.Sprintf("Plugin %s could not reach what it needs, such as its agent or the API server: the error names the address. See whether that runs, and the routes and DNS of the node.", c.plugin)}
}
