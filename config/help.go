package config

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

const (
	// helpWidth is the width of the help text in columns, helpIndent the
	// indentation of a flag's description.
	helpWidth  = 100
	helpIndent = "        "
)

// defaultCacheDir stands for the directory cni in --state-dir.
const defaultCacheDir = "STATE_DIR/cni"

// Description says what crinetd is, in --help and in its manual page.
const Description = "crinetd manages the pod networks of a Kubernetes node. It stands between the kubelet and the\n" +
	"container runtime, and drives the CNI plugins of the selected network for every pod."

// FlagGroup is a titled part of the help text.
type FlagGroup struct {
	Title string
	Flags *pflag.FlagSet
}

// FlagGroups returns crinetd's flags, for documents.
func FlagGroups() []FlagGroup { return new(raw).groups() }

// groups declares the flags. Flags that the kubelet had before 1.24 keep its names
// and defaults. A usage text begins with the name of the value.
func (r *raw) groups() []FlagGroup {
	pods, runtime, ports, daemon := newSet(), newSet(), newSet(), newSet()

	pods.StringVar(&r.NetworkPlugin, "network-plugin", "", "`NAME` The network plugin. Empty or noop: the runtime does its own networking, and crinetd makes bridged traffic visible to iptables. cni: the first usable network in the conf dir, in file-name order. Any other name: the network of that name, or else the first network whose first plugin is of that type.")
	pods.StringVar(&r.binDirs, "cni-bin-dir", "/opt/cni/bin", "`DIRS` The directories of the CNI plugins, separated by commas, searched in order. Only plugins that a network configuration names are run.")
	pods.StringVar(&r.CNIConfDir, "cni-conf-dir", "/etc/cni/net.d", "`DIR` The directory of the CNI network configurations.")
	pods.StringVar(&r.CNICacheDir, "cni-cache-dir", defaultCacheDir, "`DIR` The directory of the CNI results that crinetd keeps. It must be crinetd's own.")
	pods.IntVar(&r.NetworkPluginMTU, "network-plugin-mtu", 0, "`BYTES` The MTU for plugins whose configuration has none; 0 sets none.")
	pods.StringVar(&r.podCIDR, "pod-cidr", "", "`CIDR` The node's pod addresses, for nodes where nobody calls UpdateRuntimeConfig: one CIDR, or one of IPv4 and one of IPv6 separated by a comma.")
	pods.DurationVar(&r.CNITimeout, "cni-timeout", time.Minute, "`TIME` How long one run of a network's plugins may take. Then crinetd kills them.")
	pods.DurationVar(&r.CNIStatusGrace, "cni-status-grace", time.Minute, "`TIME` How long the STATUS (CNI 1.1) of a network that was ready may fail before the node is not ready; 0s is at once.")
	pods.DurationVar(&r.NetworkWait, "network-wait", 5*time.Minute, "`TIME` How long after a reboot pods wait for the network that was selected before it, where another one would be selected since that one has not come yet; 0s does not wait.")
	pods.IntVar(&r.CNIFailedAdds, "cni-failed-adds-not-ready", 0, "`NUMBER` After how many failed ADDs in a row the node is not ready, for networks that cannot say so themselves (no STATUS). crinetd then adds and removes a network namespace of its own until that works. The plugins must not need a pod of the API server for it. 0 is never.")
	pods.IntVar(&r.CNIMaxChains, "cni-max-chains", 32, "`NUMBER` How many networks' plugins may run at once; others wait in the order in which they came, critical pods first. Fewer run while the plugins ask to try again later, or become slow. 0 sets no limit.")
	pods.StringVar(&r.passing, "cni-passing-errors", "11", "`ERRORS` Errors of ADD that pass: codes of CNI errors and texts in them, separated by commas. crinetd undoes such an ADD and tries it again in the same network namespace, as long as the caller waits. Empty: none passes.")
	pods.StringVar(&r.critical, "critical-namespaces", "kube-system", "`NAMES` Namespaces whose pods get their network before others that wait, as static pods do, separated by commas. (The kubelet does not tell a pod's priority class.)")
	pods.StringVar(&r.builtin, "builtin-plugins", BuiltinAuto, "`TYPES` Which reference plugins run inside crinetd, which is faster: auto is all that can (bridge, ptp, host-local, flannel), off is none, or types separated by commas. One runs there only if the binary in the plugin directories is that reference plugin and every key of its configuration is known; otherwise the binary is run. crinetctl status shows which runs how.")
	pods.DurationVar(&r.CNIGCInterval, "cni-gc-interval", 5*time.Minute, "`TIME` How often crinetd removes what pods that are gone have left, and calls the plugins' GC (CNI 1.1). It does so at the start too; 0s is at the start only.")
	pods.StringVar(&r.Drift, "drift", DriftReport, "`WHAT` What happens when a pod's network is not any more as it was made. report: it is told in log, metrics, crinetctl status, pods and why. repair: besides, crinetd sets again what it or a built-in plugin had set. recreate: besides, the kubelet is told to make the sandboxes anew that cannot be repaired, a tenth of the node's pods an hour at most.")
	pods.DurationVar(&r.DriftInterval, "drift-interval", 5*time.Second, "`TIME` How often crinetd compares each pod's network with the kernel. Changes on the node's side are noticed at once. 0s is never.")
	pods.DurationVar(&r.DriftCheckInterval, "drift-check-interval", 10*time.Minute, "`TIME` How often the plugins' CHECK runs for each pod; 0s is never.")

	runtime.StringVar(&r.ContainerRuntimeEndpoint, "container-runtime-endpoint", "unix:///run/containerd/containerd.sock", "`SOCKET` The runtime's CRI socket, as a unix:// URL or an absolute path.")
	runtime.StringVar(&r.ImageServiceEndpoint, "image-service-endpoint", "", "`SOCKET` The socket of CRI's image service, if it is not --container-runtime-endpoint.")
	runtime.StringVar(&r.RuntimeCNIConfDir, "runtime-cni-conf-dir", "", "`DIR` The directory where the runtime looks for CNI configurations; crinetd writes 00-crinet.conflist there. If empty, crinetd asks the runtime.")
	runtime.StringVar(&r.RuntimeCNICacheDir, "runtime-cni-cache-dir", "/var/lib/cni", "`DIR` The directory where the runtime keeps its CNI results. crinetd reads there how pods were networked that are older than itself, and removes what it has undone.")
	runtime.StringVar(&r.handlers, "runtime-handlers", "", "`NAMES` Runtime handlers that have a CNI conf dir of their own at the runtime and whose pods crinetd networks all the same, separated by commas; crinetd writes 00-crinet.conflist to their directories as well.")
	runtime.StringVar(&r.RuntimeCNIBinDir, "runtime-cni-bin-dir", "", "`DIR` The directory where the runtime looks for CNI plugins; crinetd writes the plugin crinet there. If empty, crinetd asks the runtime.")
	runtime.StringVar(&r.RunDir, "run-dir", "/run/crinet", "`DIR` The directory of the sockets cri.sock, cni.sock and admin.sock. A reboot may clear it.")
	runtime.StringVar(&r.StateDir, "state-dir", "/var/lib/crinet", "`DIR` The directory of the journal and of the last good configurations. It must survive a reboot.")

	ports.StringVar(&r.HostPort, "hostport", HostPortManager, "`WHO` Who maps hostPorts. manager: crinetd. plugin: a plugin of the network, by the capability portMappings. off: nobody.")
	ports.StringVar(&r.HostPortConflict, "hostport-conflict", ConflictRefuse, "`WHAT` What happens to a pod with a hostPort that a process of the node listens on. refuse: it is not started. warn: it is started, and the conflict is logged.")
	ports.StringVar(&r.protected, "hostport-protected-interfaces", "kube-ipvs0", "`NAMES` Interfaces of the node whose addresses hostPorts do not take, separated by commas: kube-proxy in IPVS mode has the Services' addresses on kube-ipvs0. Empty protects none.")
	ports.StringVar(&r.HairpinMode, "hairpin-mode", HairpinVeth, "`MODE` Whether a pod on a Linux bridge can reach itself through its hostPort or Service: hairpin-veth (it can) or none.")

	daemon.DurationVar(&r.ShutdownGrace, "shutdown-grace", 30*time.Second, "`TIME` How long calls may go on after crinetd is told to end. Then it cuts them off, and undoes them at the next start.")
	daemon.StringVar(&r.MetricsBindAddress, "metrics-bind-address", "", "`HOST:PORT` The TCP address of the Prometheus metrics. They are always on admin.sock.")
	daemon.IntVarP(&r.Verbosity, "v", "v", 2, "`LEVEL` How much is logged, 0 to 10.")
	daemon.StringVar(&r.LogFormat, "log-format", LogText, "`FORMAT` The form of the log: text or json.")
	daemon.BoolVar(&r.Version, "version", false, "Print the version and exit.")
	daemon.BoolVarP(&r.help, "help", "h", false, "Print this help and exit.")

	return []FlagGroup{
		{"Pod networks", pods},
		{"Runtime and directories", runtime},
		{"hostPorts", ports},
		{"Daemon", daemon},
	}
}

func newSet() *pflag.FlagSet {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	fs.SortFlags = false
	return fs
}

func writeHelp(out io.Writer, groups []FlagGroup) error {
	var b strings.Builder
	b.WriteString(Description + "\n\nUsage:\n  crinetd [flags]\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s:\n", g.Title)
		g.Flags.VisitAll(func(f *pflag.Flag) { writeFlag(&b, f) })
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// writeFlag writes a line with the flag and, indented below it, its description.
func writeFlag(b *strings.Builder, f *pflag.Flag) {
	name, usage := pflag.UnquoteUsage(f)
	usage = strings.TrimPrefix(usage, name+" ")
	b.WriteString("  " + dashes(f.Name))
	if f.Shorthand != "" && f.Shorthand != f.Name {
		b.WriteString(", -" + f.Shorthand)
	}
	if f.Value.Type() != "bool" {
		b.WriteString(" " + name)
		if f.DefValue != "" {
			fmt.Fprintf(b, " (default %s)", f.DefValue)
		}
	}
	column := helpWidth // begins a line
	for word := range strings.FieldsSeq(usage) {
		if column += 1 + len(word); column > helpWidth {
			b.WriteString("\n" + helpIndent[1:])
			column = len(helpIndent) + len(word)
		}
		b.WriteString(" " + word)
	}
	b.WriteString("\n")
}
