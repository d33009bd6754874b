// Package admin is what crinetd tells its operator: JSON and Prometheus metrics
// over HTTP on admin.sock. crinetctl is its client. It only reads.
package admin

import "time"

// Paths of the service.
const (
	StatusPath  = "/v1/status"
	PodsPath    = "/v1/pods"
	PluginsPath = "/v1/plugins"
	MetricsPath = "/metrics"
)

// Status is the node's network as crinetd sees it.
type Status struct {
	Version string `json:"version"`
	// Plugin is the selected network plugin: cni or noop.
	Plugin string `json:"plugin"`
	// Ready says whether new pods can get a network; Reason why not.
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Network and NetworkFile name the network that new pods get, Selected says
	// why it is this one.
	Network     string `json:"network,omitempty"`
	NetworkFile string `json:"networkFile,omitempty"`
	Selected    string `json:"selected,omitempty"`
	// NetworkStatus is what the network's plugins say to STATUS (CNI 1.1): good,
	// or since when and how it fails; empty if they are not asked.
	NetworkStatus string `json:"networkStatus,omitempty"`
	// DHCPDaemons are the daemons of the IPAM plugin dhcp that are needed.
	DHCPDaemons []DHCPDaemon `json:"dhcpDaemons,omitempty"`
	// PodCIDRs are the node's, as far as they are known.
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// UndoPending counts attachments that are still to be removed.
	UndoPending int `json:"undoPending"`
	// Networks are the usable networks in the conf dir, in order; Problems what
	// is not as it should be there and in the bin dirs.
	Networks []Network `json:"networks,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
	// Reloads are the last changes of the configuration, the latest first.
	Reloads []Reload `json:"reloads,omitempty"`
	// Watch says how changes are found.
	Watch *Watch `json:"watch,omitempty"`
}

// Reload is a change of what the conf dir and the bin dirs amount to.
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
	// Own: it was started by crinetd, by this one or an earlier one.
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
	// Kind is what it means for the file's network: broken, stale, unusable,
	// duplicate, own; empty for a plugin.
	Kind   string `json:"kind,omitempty"`
	Reason string `json:"reason"`
}

// Pod is a sandbox with a network.
type Pod struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	UID       string   `json:"uid"`
	SandboxID string   `json:"sandboxID"`
	State     string   `json:"state"`
	Network   string   `json:"network"`
	NetNS     string   `json:"netns"`
	Addresses []string `json:"addresses"`
	HostPorts []string `json:"hostPorts"`
	Steps     []Step   `json:"steps"`
	Tries     int      `json:"tries,omitempty"`
	LastError string   `json:"lastError,omitempty"`
}

// Step is a step of a sandbox's lifecycle.
type Step struct {
	Step  string    `json:"step"`
	Start time.Time `json:"start"`
	// Duration is in seconds.
	Duration float64 `json:"duration"`
}
