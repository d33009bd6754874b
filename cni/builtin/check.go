package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeCheck says whether a sandbox is attached as bridgeAdd's result says.
func (p *Plugins) bridgeCheck(ctx context.Context, c *Call) (*current.Result, error) {
	conf, err := readBridgeConf(c)
	if err != nil {
		return nil, err
	}
	box, result, err := beginCheck(ctx, c)
	if err != nil {
		return nil, err
	}
	defer box.close()
	link, err := box.checkInterface(c, result)
	if err != nil {
		return nil, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if err := conf.checkHost(host, box, link, result); err != nil {
		return nil, err
	}
	return nil, box.checkAddresses(link, result)
}

// ptpCheck says whether a sandbox is attached as ptpAdd's result says.
func (p *Plugins) ptpCheck(ctx context.Context, c *Call) (*current.Result, error) {
	box, result, err := beginCheck(ctx, c)
	if err != nil {
		return nil, err
	}
	defer box.close()
	link, err := box.checkInterface(c, result)
	if err != nil {
		return nil, err
	}
	return nil, box.checkAddresses(link, result)
}

// beginCheck checks the addresses' reservation, and returns the sandbox and ADD's
// result.
func beginCheck(ctx context.Context, c *Call) (*sandbox, *current.Result, error) {
	ipam, err := ipamType(c.Config)
	if err != nil {
		return nil, nil, err
	}
	if ipam == "" {
		return nil, nil, errors.New("CHECK needs an IPAM plugin, and the configuration has none")
	}
	box, err := openSandbox(c.NetNS, nil)
	if err != nil {
		return nil, nil, err
	}
	result, err := previous(c.Config)
	if err == nil {
		err = hostLocalCheck(ctx, c)
	}
	if err != nil {
		box.close()
		return nil, nil, err
	}
	return box, result, nil
}

// previous returns the prevResult of a configuration.
func previous(config []byte) (*current.Result, error) {
	var conf types.PluginConf
	if err := json.Unmarshal(config, &conf); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if conf.RawPrevResult == nil {
		return nil, errors.New("the configuration lacks prevResult")
	}
	if err := version.ParsePrevResult(&conf); err != nil {
		return nil, err
	}
	return current.NewResultFromResult(conf.PrevResult)
}

// checkInterface returns the sandbox's interface if it is as the result says.
func (s *sandbox) checkInterface(c *Call, result *current.Result) (netlink.Link, error) {
	for _, said := range result.Interfaces {
		if said.Name != c.IfName || said.Sandbox != c.NetNS {
			continue
		}
		link, err := s.link.LinkByName(c.IfName)
		if err != nil {
			return nil, fmt.Errorf("the interface %s of the sandbox: %w", c.IfName, err)
		}
		if _, ok := link.(*netlink.Veth); !ok {
			return nil, fmt.Errorf("the interface %s of the sandbox is a %s, no veth", c.IfName, link.Type())
		}
		if mac := link.Attrs().HardwareAddr.String(); said.Mac != "" && said.Mac != mac {
			return nil, fmt.Errorf("the interface %s of the sandbox has the MAC address %s, not %s", c.IfName, mac, said.Mac)
		}
		return link, nil
	}
	return nil, fmt.Errorf("prevResult has no interface %s in %s", c.IfName, c.NetNS)
}

// checkHost checks the bridge and the port that the sandbox's interface is behind. Two
// things that the reference plugin takes for faults are none: somebody listens on the
// bridge, which makes it promiscuous, and a bridge that was made without a MAC address
// of its own took that of another port.
func (conf *bridgeConf) checkHost(host *netlink.Handle, box *sandbox, link netlink.Link, result *current.Result) error {
	bridge, err := bridgeByName(host, conf.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", conf.Bridge, err)
	}
	attrs := bridge.Attrs()
	if conf.PromiscMode && attrs.Promisc == 0 {
		return fmt.Errorf("bridge %s is not promiscuous, as the configuration wants it", conf.Bridge)
	}
	port := box.peerOf(host, link)
	if port == nil || port.Attrs().MasterIndex != attrs.Index {
		return fmt.Errorf("the sandbox's interface %s is not behind bridge %s", link.Attrs().Name, conf.Bridge)
	}
	hasBridge, hasPort := false, false
	for _, said := range result.Interfaces {
		for _, is := range []*netlink.LinkAttrs{attrs, port.Attrs()} {
			if said.Name != is.Name || said.Sandbox != "" {
				continue
			}
			if mac := is.HardwareAddr.String(); is != attrs && said.Mac != "" && said.Mac != mac {
				return fmt.Errorf("%s has the MAC address %s, not %s", is.Name, mac, said.Mac)
			}
			hasBridge, hasPort = hasBridge || is == attrs, hasPort || is != attrs
		}
	}
	if !hasBridge || !hasPort {
		return fmt.Errorf("prevResult does not name the bridge %s and its port %s", conf.Bridge, port.Attrs().Name)
	}
	return nil
}

// checkAddresses checks the addresses and routes of the sandbox's interface.
func (s *sandbox) checkAddresses(link netlink.Link, result *current.Result) error {
	has, err := listed(func() ([]netlink.Addr, error) { return s.link.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, ip := range result.IPs {
		found := false
		for _, a := range has {
			found = found || a.IPNet.String() == ip.Address.String()
		}
		if !found {
			return fmt.Errorf("%s lacks the address %s", link.Attrs().Name, ip.Address.String())
		}
		subnet := net.IPNet{IP: ip.Address.IP.Mask(ip.Address.Mask), Mask: ip.Address.Mask}
		if err := s.hasRoute(subnet, nil); err != nil {
			return err
		}
	}
	for _, r := range result.Routes {
		gateway := r.GW
		if ones, _ := r.Dst.Mask.Size(); ones == 0 {
			gateway = nil // the reference plugins accept any default route
		}
		if err := s.hasRoute(r.Dst, gateway); err != nil {
			return err
		}
	}
	return nil
}

// hasRoute says that the main table lacks a route, by a gateway if one is given.
func (s *sandbox) hasRoute(to net.IPNet, gateway net.IP) error {
	family := netlink.FAMILY_V6
	if isV4(to.IP) {
		family = netlink.FAMILY_V4
	}
	want, filter := &netlink.Route{Dst: &to, Gw: gateway}, netlink.RT_FILTER_DST
	if gateway != nil {
		filter |= netlink.RT_FILTER_GW
	}
	routes, err := listed(func() ([]netlink.Route, error) { return s.link.RouteListFiltered(family, want, filter) })
	if err != nil {
		return fmt.Errorf("list the sandbox's routes: %w", err)
	}
	if len(routes) == 0 {
		return fmt.Errorf("the sandbox lacks the route to %s", to.String())
	}
	return nil
}
