package config

import (
	"net/netip"
	"time"
)

// Values of Options.HostPort: who maps hostPorts.
const (
	HostPortManager = "manager" // crinetd
	HostPortPlugin  = "plugin"  // a plugin of the network's chain
	HostPortOff     = "off"     // nobody
)

// Values of Options.HairpinMode, named as the kubelet named them.
const (
	HairpinVeth = "hairpin-veth"
	HairpinNone = "none"
)

// Values of Options.HostPortConflict: what a pod gets whose hostPort a process
// of the node listens on.
const (
	ConflictRefuse = "refuse"
	ConflictWarn   = "warn"
)

// Values of Options.LogFormat.
const (
	LogText = "text"
	LogJSON = "json"
)

// Values of Options.NetworkPlugin that are not a name.
const (
	PluginCNI  = "cni"
	PluginNoop = "noop"
)

// Options is crinetd's command line, checked and with every default filled in.
// Directories are absolute and clean, endpoints are unix:// URLs.
type Options struct {
	// NetworkPlugin is "", PluginNoop, PluginCNI, or the name of a network or
	// of the first plugin of one.
	NetworkPlugin    string
	CNIBinDirs       []string // at least one; the first one wins
	CNIConfDir       string
	CNICacheDir      string
	NetworkPluginMTU int            // bytes; 0 leaves it to the plugins
	PodCIDRs         []netip.Prefix // none, one, or one of each IP family
	CNITimeout       time.Duration  // one run of a plugin chain
	CNIStatusGrace   time.Duration  // how long STATUS may fail before it counts
	CNIGCInterval    time.Duration  // between garbage collections; 0 for none
	CNIMaxChains     int            // plugin chains at once; 0 for no bound

	ContainerRuntimeEndpoint string
	ImageServiceEndpoint     string
	RuntimeCNIConfDir        string
	RuntimeCNIBinDir         string
	RunDir                   string
	StateDir                 string

	// ShutdownGrace is how long calls under way get to finish at the end.
	ShutdownGrace time.Duration

	HostPort         string
	HairpinMode      string
	HostPortConflict string

	MetricsBindAddress string // host:port; empty for none
	Verbosity          int    // 0 to 10
	LogFormat          string

	// Version: the version was asked for. Nothing else is set.
	Version bool
}

// Noop reports whether the noop plugin is selected: the runtime does its own
// networking.
func (o *Options) Noop() bool {
	return o.NetworkPlugin == "" || o.NetworkPlugin == PluginNoop
}
