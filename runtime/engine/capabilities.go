package engine

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/crinet-project/crinet/cni"
)

// portMappings is the capability of plugins that map hostPorts (CNI conventions).
const portMappings = "portMappings"

// capabilityArgs returns the capability args of a call by the names and in the
// form of the CNI conventions: containerd passes its Go fields' names, which not
// every plugin takes. What is not known here passes as it came. ipRanges come
// from the node's pod CIDRs.
func (e *Engine) capabilityArgs(call *Call, withPorts bool) (map[string]json.RawMessage, error) {
	args := make(map[string]json.RawMessage)
	if len(call.RuntimeConfig) > 0 {
		if err := json.Unmarshal(call.RuntimeConfig, &args); err != nil {
			return nil, err
		}
	}
	for name, known := range knownCapabilities {
		if data, given := args[name]; given {
			value, err := known(data)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			args[name] = value
		}
	}
	if !withPorts {
		delete(args, portMappings)
	}
	if ranges := ipRanges(e.podCIDRs.Get()); ranges != nil {
		data, err := json.Marshal(ranges)
		if err != nil {
			return nil, fmt.Errorf("ipRanges: %w", err)
		}
		args["ipRanges"] = data
	}
	return args, nil
}

// Next returns the attachment that the next pod would get, without a sandbox, or why
// it would get none. It changes nothing.
func (e *Engine) Next() (*cni.Attachment, error) {
	capabilities, err := e.capabilityArgs(&Call{}, false)
	if err != nil {
		return nil, err
	}
	return e.selected.Plan(cni.Attachment{CapabilityArgs: capabilities})
}

// knownCapabilities rewrite a capability's value into the conventions' form.
var knownCapabilities = map[string]func(json.RawMessage) (json.RawMessage, error){
	portMappings: rewrite[[]portMapping],
	"bandwidth":  rewrite[bandwidth],
	"dns":        rewrite[dns],
}

// rewrite decodes a value, whatever the case of its names, and encodes it with
// the names of T.
func rewrite[T any](data json.RawMessage) (json.RawMessage, error) {
	var value T
	if err := json.Unmarshal(data, &value); err != nil {
		return nil, err
	}
	return json.Marshal(value)
}

// portMapping is an element of portMappings (CNI conventions).
type portMapping struct {
	HostPort      int32    `json:"hostPort"`
	ContainerPort int32    `json:"containerPort"`
	Protocol      protocol `json:"protocol,omitempty"`
	HostIP        string   `json:"hostIP,omitempty"`
}

// protocol is a transport protocol's name, in lower case on the wire.
type protocol string

func (p protocol) MarshalJSON() ([]byte, error) {
	return json.Marshal(strings.ToLower(string(p)))
}

// bandwidth is in bits per second and bits (CNI conventions).
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// dns is the resolver configuration of a pod (CNI conventions).
type dns struct {
	Searches []string `json:"searches,omitempty"`
	Servers  []string `json:"servers,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// ipRange is a range set's only range: the whole pod CIDR.
type ipRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

// ipRanges makes a range set of each pod CIDR, so that a dual-stack pod gets an
// address of each family (CNI conventions, ipRanges).
func ipRanges(cidrs []netip.Prefix) [][]ipRange {
	var sets [][]ipRange
	for _, cidr := range cidrs {
		sets = append(sets, []ipRange{{Subnet: cidr}})
	}
	return sets
}
