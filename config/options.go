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

// Values of Options.HostPortConflict: what happens to a pod with a hostPort that
// a process of the node listens on.
const (
	ConflictRefuse = "refuse"
	ConflictWarn   = "warn"
)

// Values of --builtin-plugins that are no list.
const (
	BuiltinAuto = "auto"
	BuiltinOff  = "off"
)

// Values of Options.Drift: what is done about pods whose network is not any more as ADD
// left it.
const (
	DriftReport   = "report"
	DriftRepair   = "repair"
	DriftRecreate = "recreate"
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
	CNITimeout       time.Duration  // limit of one run of a plugin chain
	CNIStatusGrace   time.Duration  // how long STATUS may fail before it counts
	NetworkWait      time.Duration  // how long after a reboot the network of before is waited for
	CNIGCInterval    time.Duration  // between garbage collections; 0: at the start only
	CNIMaxChains     int            // plugin chains that run at once; 0: no limit
	CNIPassing       []string       // errors of ADD that pass: codes and texts
	Critical         []string       // namespaces whose pods come first
	CNIFailedAdds    int            // ADDs that fail in a row before the node is not ready; 0: never
	BuiltinPlugins   []string       // types that may run inside crinetd; nil: none

	Drift              string
	DriftInterval      time.Duration // between looks at a pod; 0: never
	DriftCheckInterval time.Duration // between CHECKs of a pod; 0: never

	ContainerRuntimeEndpoint string
	ImageServiceEndpoint     string
	RuntimeCNIConfDir        string   // empty: asked from the runtime
	RuntimeCNIBinDir         string   // empty: asked from the runtime
	RuntimeCNICacheDir       string   // the runtime's libcni cache
	RuntimeHandlers          []string // with a conf dir of their own, whose pods crinet networks
	RunDir                   string
	StateDir                 string

	// ShutdownGrace is how long calls may go on after crinetd is told to end.
	ShutdownGrace time.Duration

	HostPort string
	// HostPortProtected are interfaces whose addresses hostPorts leave alone; not
	// nil.
	HostPortProtected []string
	HairpinMode       string
	HostPortConflict  string

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
