package upstream

import (
	"encoding/json"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Facts are what a runtime says of its CNI settings in Status with verbose.
// containerd does, from 1.6 on (info.config and info.cniconfig).
type Facts struct {
	// Name and Version are the runtime's (CRI, Version).
	Name, Version string
	// Told says whether the runtime tells its CNI settings at all.
	Told bool
	// ConfDir is where it looks for network configurations.
	ConfDir string
	// BinDirs are where it looks for plugins, in order.
	BinDirs []string
	// MaxConfNum is how many configurations of ConfDir it attaches a pod to; 0
	// means all.
	MaxConfNum int
	// InternalLoopback says that it sets up lo itself; otherwise it runs the plugin
	// loopback for each pod.
	InternalLoopback bool
	// Handlers are the conf dirs of runtime handlers that have one of their own,
	// by the handler's name.
	Handlers map[string]string
	// HandlerMaxConfNum is MaxConfNum of those handlers that have one of their own.
	HandlerMaxConfNum map[string]int
	// Loaded are the names of the networks that the runtime has loaded from its
	// conf dir.
	Loaded []string
	// LoadError is why the runtime could not load its networks; empty if it could.
	LoadError string
}

// HasLoaded says whether the runtime has loaded a network.
func (f *Facts) HasLoaded(network string) bool { return slices.Contains(f.Loaded, network) }

// notInitialized is what containerd says in NetworkReady while it has loaded no
// network (go-cni, ErrCNINotInitialized). Other messages there come from the
// plugin's own STATUS.
const notInitialized = "cni plugin not initialized"

// config is the part of info.config (containerd's internal/cri/config) that
// crinetd reads.
type config struct {
	CNI struct {
		BinDir              string   `json:"binDir"` // before containerd 2.1
		BinDirs             []string `json:"binDirs"`
		ConfDir             string   `json:"confDir"`
		MaxConfNum          int      `json:"maxConfNum"`
		UseInternalLoopback bool     `json:"useInternalLoopback"` // from containerd 2.0 on
	} `json:"cni"`
	Containerd struct {
		Runtimes map[string]struct {
			CNIConfDir    string `json:"cniConfDir"`
			CNIMaxConfNum int    `json:"cniMaxConfNum"` // 0 means MaxConfNum
		} `json:"runtimes"`
	} `json:"containerd"`
}

// loaded is the part of info.cniconfig (go-cni, ConfigResult) that crinetd reads.
type loaded struct {
	Networks []struct {
		Config struct{ Name string }
	}
}

// loopbackNetwork is the network that containerd adds to those of its conf dir
// (go-cni, WithLoNetwork).
const loopbackNetwork = "cni-loopback"

// ReadFacts reads what a response tells. A runtime that tells nothing, or tells
// it in another form, gives Facts that are not Told.
func ReadFacts(name, version string, resp *runtimeapi.StatusResponse) *Facts {
	f := &Facts{Name: name, Version: version, Handlers: make(map[string]string)}
	var c config
	var l loaded
	info := resp.GetInfo()
	if json.Unmarshal([]byte(info["config"]), &c) != nil || c.CNI.ConfDir == "" ||
		json.Unmarshal([]byte(info["cniconfig"]), &l) != nil {
		return f
	}
	f.Told, f.ConfDir, f.BinDirs = true, c.CNI.ConfDir, c.CNI.BinDirs
	if len(f.BinDirs) == 0 && c.CNI.BinDir != "" {
		f.BinDirs = []string{c.CNI.BinDir}
	}
	f.MaxConfNum, f.InternalLoopback = c.CNI.MaxConfNum, c.CNI.UseInternalLoopback
	for handler, settings := range c.Containerd.Runtimes {
		if settings.CNIConfDir != "" {
			f.Handlers[handler] = settings.CNIConfDir
			if settings.CNIMaxConfNum != 0 {
				if f.HandlerMaxConfNum == nil {
					f.HandlerMaxConfNum = make(map[string]int)
				}
				f.HandlerMaxConfNum[handler] = settings.CNIMaxConfNum
			}
		}
	}
	for _, network := range l.Networks {
		if network.Config.Name != loopbackNetwork {
			f.Loaded = append(f.Loaded, network.Config.Name)
		}
	}
	f.LoadError = loadError(resp)
	return f
}

// loadError says why networks are not loaded.
func loadError(resp *runtimeapi.StatusResponse) string {
	if said := resp.GetInfo()["lastCNILoadStatus"]; said != "" && said != "OK" {
		return said
	}
	for _, c := range resp.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.NetworkReady && !c.GetStatus() && strings.Contains(c.GetMessage(), notInitialized) {
			return c.GetMessage()
		}
	}
	return ""
}
