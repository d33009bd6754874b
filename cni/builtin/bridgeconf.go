package builtin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// defaultBridge is the bridge of a configuration that names none.
const defaultBridge = "cni0"

// bridgeConf is the configuration of the plugin bridge, as far as it is not IPAM's.
type bridgeConf struct {
	types.PluginConf
	Bridge                    string `json:"bridge"`
	IsGateway                 bool   `json:"isGateway"`
	IsDefaultGateway          bool   `json:"isDefaultGateway"`
	ForceAddress              bool   `json:"forceAddress"`
	MTU                       int    `json:"mtu"`
	HairpinMode               bool   `json:"hairpinMode"`
	PromiscMode               bool   `json:"promiscMode"`
	EnableDAD                 bool   `json:"enabledad"`
	DisableContainerInterface bool   `json:"disableContainerInterface"`
	PortIsolation             bool   `json:"portIsolation"`
	Args                      struct {
		CNI macArg `json:"cni"`
	} `json:"args"`
	RuntimeConfig macArg `json:"runtimeConfig"`

	mac string // of the sandbox's interface; empty is a random one
}

type macArg struct {
	MAC string `json:"mac"`
}

// macEnv are the plugin's pairs of CNI_ARGS.
type macEnv struct {
	types.CommonArgs
	MAC types.UnmarshallableString `json:"mac,omitempty"`
}

// readBridgeConf reads the configuration. Of the MAC addresses that are given in three
// ways, the capability's comes first, then that of args.
func readBridgeConf(c *Call) (*bridgeConf, error) {
	conf := &bridgeConf{Bridge: defaultBridge}
	if err := json.Unmarshal(c.Config, conf); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var env macEnv
	if c.Args != "" {
		if err := types.LoadArgs(c.Args, &env); err != nil {
			return nil, err
		}
	}
	for _, mac := range []string{string(env.MAC), conf.Args.CNI.MAC, conf.RuntimeConfig.MAC} {
		if mac != "" {
			conf.mac = mac
		}
	}
	if conf.IsDefaultGateway {
		conf.IsGateway = true
	}
	return conf, nil
}

// valid says what ADD refuses.
func (conf *bridgeConf) valid() error {
	switch {
	case conf.IPAM.Type != "" && conf.DisableContainerInterface:
		return errors.New("disableContainerInterface and ipam exclude each other")
	case conf.HairpinMode && conf.PromiscMode:
		return errors.New("hairpinMode and promiscMode exclude each other")
	}
	return nil
}

// gateways completes a result with the gateways and default routes that the bridge's
// configuration adds to those of IPAM, and returns the addresses that the bridge
// gets, those of IPv4 first.
func (conf *bridgeConf) gateways(result *current.Result) (all []*net.IPNet) {
	var v4, v6 []*net.IPNet
	hasDefault := map[bool]bool{} // is IPv4 -> there is a default route by a gateway
	for _, ip := range result.IPs {
		is4 := isV4(ip.Address.IP)
		ip.Interface = current.Int(2)
		if ip.Gateway == nil && conf.IsGateway {
			ip.Gateway = firstOf(&ip.Address)
		}
		if conf.IsDefaultGateway && !hasDefault[is4] {
			hasDefault[is4] = true
			if to := defaultNet(is4); !hasRouteByGateway(result.Routes, to) {
				result.Routes = append(result.Routes, &types.Route{Dst: to, GW: ip.Gateway})
			}
		}
		if !conf.IsGateway {
			continue
		}
		address := &net.IPNet{IP: ip.Gateway, Mask: ip.Address.Mask}
		if is4 {
			v4 = append(v4, address)
		} else {
			v6 = append(v6, address)
		}
	}
	return append(v4, v6...)
}

func defaultNet(v4 bool) net.IPNet {
	if v4 {
		return net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.IPMask(net.IPv6zero)}
}

func hasRouteByGateway(routes []*types.Route, to net.IPNet) bool {
	for _, r := range routes {
		if r.GW != nil && r.Dst.String() == to.String() {
			return true
		}
	}
	return false
}

// firstOf returns the first address after that of the network.
func firstOf(n *net.IPNet) net.IP {
	ip := n.IP.Mask(n.Mask)
	for i := len(ip) - 1; i >= 0; i-- {
		if ip[i]++; ip[i] != 0 {
			break
		}
	}
	return ip
}

// setsDNS says whether a configuration has DNS settings of its own, which replace
// those of IPAM.
func setsDNS(dns types.DNS) bool {
	return dns.Nameservers != nil || dns.Search != nil || dns.Options != nil || dns.Domain != ""
}
