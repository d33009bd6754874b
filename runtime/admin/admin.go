// Package admin is crinetd's interface for operators: it serves JSON and Prometheus
// metrics over HTTP on admin.sock. An operator can ask for changes: to forget a
// pod's network that cannot be removed, to try the network with an attachment
// that is removed at once, and to lend attachments for a test. crinetctl is its client.
package admin

import "time"

// Paths of the service.
const (
	StatusPath  = "/v1/status"
	PodsPath    = "/v1/pods"
	PluginsPath = "/v1/plugins"
	ForgetPath  = "/v1/forget"
	TrialPath   = "/v1/trial"
	MetricsPath = "/metrics"
	// OperationsPath takes the parameters pod, failed (true or false) and limit, all
	// optional, and answers with a list of [recorder.Operation], the newest first.
	OperationsPath = "/v1/operations"
	// WhyPath takes the parameter pod and answers with a [why.Story].
	WhyPath = "/v1/why"
)

// Status is the node's network as crinetd sees it.
type Status struct {
	Version string `json:"version"`
	// Plugin is the selected network plugin: cni or noop.
	Plugin string `json:"plugin"`
	// Ready says whether new pods can get a network; Reason why not.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Waiting says what new pods wait for, WaitingSince since when; empty while the
	// network is ready, and where it is not known what would help.
	Waiting      string     `json:"waiting,omitempty"`
	WaitingSince *time.Time `json:"waitingSince,omitempty"`
	// OtherNetwork are the pods that are on another network than new pods get; nil if
	// there are none.
	OtherNetwork *OtherNetwork `json:"otherNetwork,omitempty"`
	// Network and NetworkFile name the network that new pods get. Selected says
	// why it was selected.
	Network     string `json:"network,omitempty"`
	NetworkFile string `json:"networkFile,omitempty"`
	Selected    string `json:"selected,omitempty"`
	// NetworkPlugins are the plugins of that network, in the order of ADD.
	NetworkPlugins []NetworkPlugin `json:"networkPlugins,omitempty"`
	// NetworkStatus is the answer of the network's plugins to STATUS (CNI 1.1):
	// good, or since when and how it fails; empty if they are not asked.
	NetworkStatus string `json:"networkStatus,omitempty"`
	// DHCPDaemons are the daemons of the IPAM plugin dhcp that pods need.
	DHCPDaemons []DHCPDaemon `json:"dhcpDaemons,omitempty"`
	// Runtime is the container runtime's side.
	Runtime *Runtime `json:"runtime,omitempty"`
	// Notice is what an operator should know although the network is ready.
	Notice string `json:"notice,omitempty"`
	// HostPorts are those that crinetd maps; nil if it maps none.
	HostPorts *HostPorts `json:"hostPorts,omitempty"`
	// Addresses are the ranges of host-local, the selected network's first; none
	// if the addresses come from elsewhere.
	Addresses []AddressRange `json:"addresses,omitempty"`
	// Drift is about pods whose network is not as it was made; nil if nobody looks.
	Drift *Drift `json:"drift,omitempty"`
	// PodCIDRs are the node's, as far as they are known.
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// UndoPending counts attachments that are still to be removed.
	UndoPending int `json:"undoPending"`
	// AddFailures counts the ADDs that failed since the last one that succeeded.
	AddFailures int `json:"addFailures,omitempty"`
	// Adds is how busy ADD is.
	Adds Adds `json:"adds"`
	// Networks are the usable networks in the conf dir, in order. Problems are the
	// files there and in the bin dirs that cannot be used as they are.
	Networks []Network `json:"networks,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
	// Reloads are the last changes of the configuration, the latest first.
	Reloads []Reload `json:"reloads,omitempty"`
	// Watch says how changes of the directories are found.
	Watch *Watch `json:"watch,omitempty"`
}

// OtherNetwork are pods that are on another network than new pods get. They keep it
// until they are made anew.
type OtherNetwork struct {
	// Network is what new pods get.
	Network string `json:"network"`
	Count   int    `json:"count"`
	// Pods are some of them, as namespace/name (network).
	Pods []string `json:"pods"`
}

// Drift is about pods whose network is not as it was made.
type Drift struct {
	// Mode is what is done about it: report, repair or recreate.
	Mode string `json:"mode"`
	// Pods are those that are drifted, the longest first.
	Pods []string `json:"pods,omitempty"`
	// Remaking counts the sandboxes that the kubelet is told to make anew.
	Remaking int `json:"remaking,omitempty"`
}

// Adds is how busy ADD is: how many run, wait, and may run at once (0: no limit), and how
// often one was tried again in place since crinetd began.
type Adds struct {
	Running int    `json:"running"`
	Waiting int    `json:"waiting"`
	Limit   int    `json:"limit"`
	Retries uint64 `json:"retries"`
}

// NetworkPlugin says how a plugin is run for new pods.
type NetworkPlugin struct {
	Type string `json:"type"`
	// Builtin: inside crinetd. Otherwise its binary is executed, and Why says why.
	Builtin bool   `json:"builtin"`
	Why     string `json:"why,omitempty"`
}

// Runtime is the container runtime as crinetd knows it from its last answer.
type Runtime struct {
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	// ConfDir and BinDirs are where it looks for CNI configurations and plugins.
	// Loaded are the networks that it has loaded. All are empty if it does not
	// tell.
	ConfDir string   `json:"confDir,omitempty"`
	BinDirs []string `json:"binDirs,omitempty"`
	Loaded  []string `json:"loaded,omitempty"`
	// Unserved are the runtime handlers that crinet leaves alone, each with its
	// own conf dir.
	Unserved map[string]string `json:"unserved,omitempty"`
	// Problem says why the runtime does not answer or does not use crinet; empty
	// if all is well.
	Problem string `json:"problem,omitempty"`
}

// HostPorts is the state of the hostPorts that crinetd maps.
type HostPorts struct {
	Pods     int `json:"pods"`
	Mappings int `json:"mappings"`
	// Unavailable says why none can be mapped, Listeners of which protocols host
	// processes on a port cannot be seen and why, Flows why older flows are not
	// ended when a mapping changes; empty if all is well.
	Unavailable string `json:"unavailable,omitempty"`
	Listeners   string `json:"listeners,omitempty"`
	Flows       string `json:"flows,omitempty"`
}

// AddressRange counts the addresses of one range of a network. The counts add up to
// Size and are 2^53 at most, which stands for more than anybody counts.
type AddressRange struct {
	Network string `json:"network"`
	Range   string `json:"range"`
	// Selected says that new pods get addresses from it.
	Selected bool   `json:"selected"`
	Size     uint64 `json:"size"`
	Used     uint64 `json:"used"`
	Free     uint64 `json:"free"`
	// Leaked addresses are held by no sandbox that crinetd or the runtime knows,
	// Reserved ones are given to no pod: network, gateway, limits of the range.
	Leaked   uint64 `json:"leaked"`
	Reserved uint64 `json:"reserved"`
	// Leaks are some of the leaked addresses.
	Leaks []AddressLeak `json:"leaks,omitempty"`
	// Problem says why the counts may be wrong; empty if they are not.
	Problem string `json:"problem,omitempty"`
}

// AddressLeak is an address that nobody will free.
type AddressLeak struct {
	Address string `json:"address"`
	// Container is what the file says whose it is.
	Container string `json:"container"`
	File      string `json:"file"`
}

// Forget asks crinetd to forget the network of a sandbox whose DEL cannot work.
type Forget struct {
	// Sandbox is the sandbox's id, or a unique prefix of it.
	Sandbox string `json:"sandbox"`
	// Reason is kept in crinetd's log.
	Reason string `json:"reason"`
}

// Trial is what a throwaway attachment to the selected network has shown: its ADD
// and its DEL worked.
type Trial struct {
	Network   string   `json:"network"`
	Addresses []string `json:"addresses"`
	// Add and Del are how long the two took, in seconds.
	Add float64 `json:"add"`
	Del float64 `json:"del"`
}

// Reload is a change of the networks or plugins in the conf dir and the bin dirs.
type Reload struct {
	Generation uint64    `json:"generation"`
	Time       time.Time `json:"time"`
	Why        string    `json:"why"`
}

// Watch counts how often the directories were looked at since crinetd began.
type Watch struct {
	Scans    uint64    `json:"scans"`
	Probes   uint64    `json:"probes"`
	Rearms   uint64    `json:"rearms"`
	LastScan time.Time `json:"lastScan"`
	// Error says why changes are found by polling only; empty if all is well.
	Error string `json:"error,omitempty"`
}

// DHCPDaemon is a daemon of the IPAM plugin dhcp.
type DHCPDaemon struct {
	Socket string `json:"socket"`
	// PID is 0 while it does not run.
	PID int `json:"pid,omitempty"`
	// Own says that crinetd, this one or an earlier one, has started it.
	Own bool `json:"own"`
	// Starts counts how often this crinetd has started it.
	Starts uint64 `json:"starts"`
	// Reason says why it does not run; empty if it does.
	Reason string `json:"reason,omitempty"`
}

// Plugins is what the bin dirs hold.
type Plugins struct {
	Dirs    []BinDir `json:"dirs"`
	Plugins []Plugin `json:"plugins"`
}

// BinDir is a bin dir, in the order of search.
type BinDir struct {
	Path string `json:"path"`
	// Reason says why it was not looked through; empty if it was.
	Reason string `json:"reason,omitempty"`
}

// Plugin is an executable of the bin dirs.
type Plugin struct {
	Name     string   `json:"name"`
	Path     string   `json:"path"`
	Versions []string `json:"versions,omitempty"`
	// Reason says why it is no usable plugin; empty if it is one.
	Reason string `json:"reason,omitempty"`
	// Shadowed are the paths of others of the same name, in later directories.
	Shadowed []string `json:"shadowed,omitempty"`
}

// Network is a usable network.
type Network struct {
	Name       string   `json:"name"`
	File       string   `json:"file"`
	CNIVersion string   `json:"cniVersion"`
	Plugins    []string `json:"plugins"`
	// Stale says why the network is an earlier version of its file.
	Stale string `json:"stale,omitempty"`
}

// Problem is a file that cannot be used as it is, and why.
type Problem struct {
	File string `json:"file"`
	// Line and Col are the place in the file, from 1; 0 if none is meant.
	Line int `json:"line,omitempty"`
	Col  int `json:"col,omitempty"`
	// Kind is the consequence for the file's network: broken, stale, unusable,
	// duplicate, own; empty for a plugin.
	Kind   string `json:"kind,omitempty"`
	Reason string `json:"reason"`
}

// Pod is a sandbox with a network.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
	SandboxID string `json:"sandboxID"`
	State     string `json:"state"`
	Network   string `json:"network"`
	NetNS     string `json:"netns"`
	// OtherNetwork: new pods get another network than this one.
	OtherNetwork bool     `json:"otherNetwork,omitempty"`
	Addresses    []string `json:"addresses"`
	HostPorts    []string `json:"hostPorts"`
	// HostPortsLimited says from where the hostPorts do not answer and why; empty
	// if they do.
	HostPortsLimited string `json:"hostPortsLimited,omitempty"`
	// Drift says what is not as it was made, DriftSince when that was noticed; empty and
	// nil if all is.
	Drift      string     `json:"drift,omitempty"`
	DriftSince *time.Time `json:"driftSince,omitempty"`
	Steps      []Step     `json:"steps"`
	// Adopted: the runtime networked the pod before crinetd came.
	Adopted   bool   `json:"adopted,omitempty"`
	Tries     int    `json:"tries,omitempty"`
	LastError string `json:"lastError,omitempty"`
}

// Step is a step of a sandbox's lifecycle.
type Step struct {
	Step  string    `json:"step"`
	Start time.Time `json:"start"`
	// Duration is in seconds.
	Duration float64 `json:"duration"`
}
