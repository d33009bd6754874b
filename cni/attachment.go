package cni

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
)

// Attachment is one attachment of a sandbox to a network: what ADD was called
// with, and what it answered. It is self-contained and can be stored as JSON.
type Attachment struct {
	// ContainerID is the sandbox's id (CNI_CONTAINERID).
	ContainerID string `json:"containerID"`
	// NetNS is the path of the sandbox's network namespace (CNI_NETNS). It is
	// empty when the namespace is known to be gone.
	NetNS string `json:"netns,omitempty"`
	// IfName is the interface to make in the namespace (CNI_IFNAME).
	IfName string `json:"ifName"`
	// Args are the pairs of CNI_ARGS, in the order in which the runtime gave
	// them.
	Args [][2]string `json:"args,omitempty"`
	// Network is the name of the network configuration list.
	Network string `json:"network"`
	// ConfList is the configuration list with all its plugins inlined.
	ConfList json.RawMessage `json:"confList"`
	// CapabilityArgs are the runtimeConfig values by capability (CNI
	// conventions, "Dynamic Plugin specific fields").
	CapabilityArgs map[string]json.RawMessage `json:"capabilityArgs,omitempty"`
	// Builtin are the plugins of the list that crinetd runs itself.
	Builtin []Builtin `json:"builtin,omitempty"`
	// Kept names the copies of the binaries that were there for ADD, by plugin type
	// ([keep.Store]). DEL and CHECK use them where the bin dirs have none.
	Kept map[string]string `json:"kept,omitempty"`
	// Result is what ADD returned, in the list's CNI version; empty before.
	Result json.RawMessage `json:"result,omitempty"`
	// CacheDir is the libcni cache that holds the attachment's entry, if that is
	// not --cni-cache-dir: that of another program, which made the attachment.
	CacheDir string `json:"cacheDir,omitempty"`
	// First has its ADD come before others that wait. It is not kept.
	First bool `json:"-"`
	// Begun is when ADD began, for TearDownPod, and zero if that is not known. It is not
	// kept.
	Begun time.Time `json:"-"`
	// Note is the caller's: SetUpPod keeps it in libcni's cache, in case the
	// cache is all that is left, and Cached returns it. It must be JSON. It is
	// not part of the attachment's own JSON.
	Note json.RawMessage `json:"-"`
}

// list parses the attachment's configuration list.
func (a *Attachment) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(a.ConfList)
	if err != nil {
		return nil, fmt.Errorf("network %q: stored configuration list: %w", a.Network, err)
	}
	return list, nil
}

// HasCheck reports whether the attachment's chain has a CHECK: the verb came with
// CNI 0.4.0, and the list can switch it off.
func (a *Attachment) HasCheck() (bool, error) {
	list, err := a.list()
	if err != nil {
		return false, err
	}
	return !list.DisableCheck && atLeast(list.CNIVersion, "0.4.0"), nil
}

// runtimeConf returns the attachment's arguments in libcni's form.
func (a *Attachment) runtimeConf() *libcni.RuntimeConf {
	capabilities := make(map[string]any, len(a.CapabilityArgs)+3)
	for name, value := range a.CapabilityArgs {
		capabilities[name] = value
	}
	if len(a.Note) > 0 {
		capabilities[noteCapability] = a.Note
	}
	if len(a.Builtin) > 0 {
		capabilities[builtinCapability] = a.Builtin
	}
	if len(a.Kept) > 0 {
		capabilities[keptCapability] = a.Kept
	}
	return &libcni.RuntimeConf{
		ContainerID:    a.ContainerID,
		NetNS:          a.NetNS,
		IfName:         a.IfName,
		Args:           a.Args,
		CapabilityArgs: capabilities,
	}
}

// prevResult returns the stored result as DEL and CHECK get it, or nil if there
// is none or the list's version does not pass one (before 0.4.0).
func (a *Attachment) prevResult(cniVersion string) (types.Result, error) {
	if len(a.Result) == 0 || !atLeast(cniVersion, "0.4.0") {
		return nil, nil
	}
	result, err := create.CreateFromBytes(a.Result)
	if err != nil {
		return nil, fmt.Errorf("network %q: stored result: %w", a.Network, err)
	}
	return result.GetAsVersion(cniVersion)
}
