package inspect

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/crinet-project/crinet/cni"
)

// expected is what an attachment should have.
type expected struct {
	inner     []string // interfaces in the sandbox
	outer     []string // interfaces on the node
	addresses []address
	routes    []route
	// gateways are addresses that the node has for the pod.
	gateways []netip.Addr
	// hairpin says that the configuration asks for it.
	hairpin bool
	// routed says that the node routes the pod's packets, by a veth or a bridge of its own.
	routed bool
	// isolated says that the configuration has bridge ports isolated from each other.
	isolated bool
}

// address is an address of the sandbox. link is empty if it may be on any interface.
type address struct {
	prefix netip.Prefix
	link   string
}

// route is a route of the sandbox. The gateway is the zero Addr if any will do; via is
// the one that ADD took, as far as that is known.
type route struct {
	to           netip.Prefix
	gateway, via netip.Addr
	result       *types.Route
}

// plugin is what counts in the configuration of a plugin that inspect knows.
type plugin struct {
	Type             string          `json:"type"`
	IsGateway        *bool           `json:"isGateway"`
	IsDefaultGateway bool            `json:"isDefaultGateway"`
	HairpinMode      bool            `json:"hairpinMode"`
	PortIsolation    bool            `json:"portIsolation"`
	Vlan             int             `json:"vlan"`
	Delegate         json.RawMessage `json:"delegate"`
}

// expect reads an attachment's result and configuration.
func expect(a *cni.Attachment) (want expected, err error) {
	want.inner = []string{a.IfName}
	if len(a.Result) == 0 {
		return want, nil
	}
	result, err := resultOf(a.Result)
	if err != nil {
		return want, err
	}
	for _, iface := range result.Interfaces {
		switch {
		case iface == nil || iface.Name == "":
		case iface.Sandbox == "":
			want.outer = append(want.outer, iface.Name)
		case sameNetNS(iface.Sandbox, a.NetNS) && !slices.Contains(want.inner, iface.Name):
			want.inner = append(want.inner, iface.Name)
		}
	}
	want.takeIPs(result, a.NetNS)
	for _, r := range result.Routes {
		if r == nil || r.Dst.IP == nil {
			continue
		}
		to, ok := prefixOf(r.Dst)
		if !ok {
			continue
		}
		gateway, _ := netip.AddrFromSlice(r.GW)
		via := gateway.Unmap()
		for _, address := range want.gateways { // as plugins take the one of an address
			if !via.IsValid() && address.Is4() == to.Addr().Is4() {
				via = address
			}
		}
		if to.Bits() == 0 {
			gateway = netip.Addr{} // any default route will do, as for CHECK
		}
		want.routes = append(want.routes, route{to, gateway.Unmap(), via, r})
	}
	want.takeConfig(a)
	return want, nil
}

// resultOf reads a result of any version.
func resultOf(data []byte) (*current.Result, error) {
	parsed, err := create.CreateFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("the result of ADD: %w", err)
	}
	result, err := current.NewResultFromResult(parsed)
	if err != nil {
		return nil, fmt.Errorf("the result of ADD: %w", err)
	}
	return result, nil
}

// takeIPs takes the sandbox's addresses, and their gateways.
func (want *expected) takeIPs(result *current.Result, netns string) {
	for _, ip := range result.IPs {
		link := ""
		if n := ip.Interface; n != nil && *n >= 0 && *n < len(result.Interfaces) && result.Interfaces[*n] != nil {
			iface := result.Interfaces[*n]
			if iface.Sandbox == "" || !sameNetNS(iface.Sandbox, netns) {
				continue
			}
			link = iface.Name
		}
		if prefix, ok := prefixOf(ip.Address); ok {
			want.addresses = append(want.addresses, address{prefix, link})
		}
		if gateway, ok := netip.AddrFromSlice(ip.Gateway); ok {
			want.gateways = append(want.gateways, gateway.Unmap())
		}
	}
}

// takeConfig takes what the configuration says. Gateways stay if the node has them.
func (want *expected) takeConfig(a *cni.Attachment) {
	var list struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	gatewayHere := false
	if json.Unmarshal(a.ConfList, &list) == nil {
		for _, p := range append(list.Plugins, list.plugin) {
			if p.Type == "flannel" {
				p = delegateOf(p)
			}
			want.hairpin = want.hairpin || p.Type == "bridge" && p.HairpinMode
			want.isolated = want.isolated || p.Type == "bridge" && p.PortIsolation
			here := p.Type == "ptp" || p.Type == "bridge" && p.Vlan == 0 && (p.IsDefaultGateway || p.IsGateway != nil && *p.IsGateway)
			gatewayHere = gatewayHere || here
		}
	}
	want.routed = gatewayHere
	if !gatewayHere {
		want.gateways = nil
	}
}

// delegateOf is what flannel has do its work: a bridge that is the gateway, if its
// configuration does not say otherwise.
func delegateOf(p plugin) plugin {
	delegate := plugin{Type: "bridge"}
	if json.Unmarshal(p.Delegate, &delegate) != nil {
		delegate = plugin{Type: "bridge"}
	}
	if delegate.IsGateway == nil {
		yes := true
		delegate.IsGateway = &yes
	}
	return delegate
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if !ok || n.Mask == nil {
		return netip.Prefix{}, false
	}
	prefix := netip.PrefixFrom(addr.Unmap(), bits)
	return prefix, prefix.IsValid()
}

// sameNetNS says whether two paths are one namespace, also one that is gone.
func sameNetNS(a, b string) bool {
	if a == b {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}
