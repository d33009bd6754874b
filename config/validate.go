package config

import (
	"github.com/crinet-project/crinet/probe"
)

// Valid is what a valid configuration file says. Whether its plugins exist is not
// known.
type Valid struct {
	Network      string
	CNIVersions  []string // that it can be used with, best first
	Plugins      []string // types, in the order of ADD
	Capabilities []string // that its plugins declare, sorted
	NeedsPodCIDR bool     // see Network.NeedsPodCIDR
	// Warnings say what may make its pods fail, if the plugins were looked at.
	Warnings []string
}

// ValidateFile reads one configuration file as a scan of its directory would,
// with the plugins in the network's folder beside it. It needs no daemon. look
// looks at the plugins of these types in the bin dirs; nil leaves them aside.
func ValidateFile(path string, look func(types []string) (*probe.Plugins, error)) (*Valid, *Problem) {
	c, problem := ReadCandidate(path)
	if problem != nil {
		return nil, problem
	}
	p, problem := c.parse()
	if problem != nil {
		return nil, problem
	}
	valid := &Valid{Network: p.name, CNIVersions: p.versions, Capabilities: p.capabilities(), NeedsPodCIDR: p.needsPodCIDR()}
	for _, pl := range p.plugins {
		valid.Plugins = append(valid.Plugins, pl.typ)
	}
	if look == nil {
		return valid, nil
	}
	_, warnings, problem := c.Network(look, ScanOptions{})
	valid.Warnings = warnings
	if problem != nil {
		return nil, problem
	}
	return valid, nil
}
