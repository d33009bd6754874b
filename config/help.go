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
	// indentation of what a flag does.
	helpWidth  = 100
	helpIndent = "        "
)

// group is a titled part of the help text.
type group struct {
	title string
	flags *pflag.FlagSet
}

// groups declares the flags. Names and defaults are those of the kubelet
// before 1.24 where it had them. A usage text begins with the value's name.
func (r *raw) groups() []group {
	pods, runtime, ports, daemon := newSet(), newSet(), newSet(), newSet()

	pods.StringVar(&r.NetworkPlugin, "network-plugin", "", "`NAME` The network plugin. Empty or noop: the runtime does its own networking; bridged traffic is made visible to iptables. cni: the first usable network in the conf dir, in file-name order. Any other name: the network of that name, or else the first network whose first plugin is of that type.")
	pods.StringVar(&r.binDirs, "cni-bin-dir", "/opt/cni/bin", "`DIRS` Where the CNI plugins are: directories separated by commas, searched in order.")
	pods.StringVar(&r.CNIConfDir, "cni-conf-dir", "/etc/cni/net.d", "`DIR` Where the CNI network configurations are.")
	pods.StringVar(&r.CNICacheDir, "cni-cache-dir", "/var/lib/cni/cache", "`DIR` Where CNI's results are cached.")
	pods.IntVar(&r.NetworkPluginMTU, "network-plugin-mtu", 0, "`BYTES` The MTU that is passed to plugins whose configuration has none; 0 passes none.")
	pods.StringVar(&r.podCIDR, "pod-cidr", "", "`CIDR` The node's pod addresses, where nobody calls UpdateRuntimeConfig: one CIDR, or one of IPv4 and one of IPv6 separated by a comma.")
	pods.DurationVar(&r.CNITimeout, "cni-timeout", time.Minute, "`TIME` How long one run of a network's plugins may take; then they are killed.")
	pods.DurationVar(&r.CNIStatusGrace, "cni-status-grace", time.Minute, "`TIME` How long a network that was ready may fail its STATUS (CNI 1.1) before the node is not ready; 0s is at once.")
	pods.IntVar(&r.CNIMaxChains, "cni-max-chains", 32, "`NUMBER` How many runs of networks' plugins there may be at once; others wait, first come, first served. 0 sets no bound.")
	pods.DurationVar(&r.CNIGCInterval, "cni-gc-interval", 5*time.Minute, "`TIME` How often what is left of pods that are gone is collected, also by the plugins (CNI 1.1, GC), besides at the start; 0s is never.")

	runtime.StringVar(&r.ContainerRuntimeEndpoint, "container-runtime-endpoint", "unix:///run/containerd/containerd.sock", "`SOCKET` The runtime's CRI socket, as a unix:// URL or an absolute path.")
	runtime.StringVar(&r.ImageServiceEndpoint, "image-service-endpoint", "", "`SOCKET` The socket of CRI's image service, if it is not --container-runtime-endpoint.")
	runtime.StringVar(&r.RuntimeCNIConfDir, "runtime-cni-conf-dir", "", "`DIR` Where the runtime looks for CNI configurations, if not in --cni-conf-dir. 00-crinet.conflist is put there.")
	runtime.StringVar(&r.RuntimeCNIBinDir, "runtime-cni-bin-dir", "", "`DIR` Where the runtime looks for CNI plugins, if not in the first --cni-bin-dir. The plugin crinet is put there.")
	runtime.StringVar(&r.RunDir, "run-dir", "/run/crinet", "`DIR` Where the sockets cri.sock, cni.sock and admin.sock are; a reboot may clear it.")
	runtime.StringVar(&r.StateDir, "state-dir", "/var/lib/crinet", "`DIR` Where the journal is; it is kept over a reboot.")

	ports.StringVar(&r.HostPort, "hostport", HostPortManager, "`WHO` Who maps hostPorts. manager: crinetd. plugin: a plugin of the network, by the capability portMappings. off: nobody.")
	ports.StringVar(&r.HostPortConflict, "hostport-conflict", ConflictRefuse, "`WHAT` What becomes of a pod whose hostPort a process of the node listens on: refuse or warn.")
	ports.StringVar(&r.HairpinMode, "hairpin-mode", HairpinVeth, "`MODE` Lets a pod on a Linux bridge reach itself through its hostPort or Service: hairpin-veth or none.")

	daemon.DurationVar(&r.ShutdownGrace, "shutdown-grace", 30*time.Second, "`TIME` How long calls under way may take to finish when crinetd is told to end; then they are cut off, and undone at the next start.")
	daemon.StringVar(&r.MetricsBindAddress, "metrics-bind-address", "", "`HOST:PORT` Where Prometheus metrics are served over TCP. They are always on admin.sock.")
	daemon.IntVarP(&r.Verbosity, "v", "v", 2, "`LEVEL` How much is logged, 0 to 10.")
	daemon.StringVar(&r.LogFormat, "log-format", LogText, "`FORMAT` The form of the log: text or json.")
	daemon.BoolVar(&r.Version, "version", false, "Print the version and exit.")
	daemon.BoolVarP(&r.help, "help", "h", false, "Print this help and exit.")

	return []group{
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

func writeHelp(out io.Writer, groups []group) error {
	var b strings.Builder
	b.WriteString("crinetd manages the pod networks of a Kubernetes node. It stands between the kubelet and the\n" +
		"container runtime, and drives the CNI plugins of the selected network for every pod.\n\n" +
		"Usage:\n  crinetd [flags]\n")
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s:\n", g.title)
		g.flags.VisitAll(func(f *pflag.Flag) { writeFlag(&b, f) })
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// writeFlag writes a line with the flag, and below it what it does.
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
