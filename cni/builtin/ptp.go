package builtin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ptpConf is the configuration of the plugin ptp, as far as it is not IPAM's.
type ptpConf struct {
	types.PluginConf
	MTU int `json:"mtu"`
}

// ptpAdd joins a sandbox and the node with a veth pair and routes.
func (p *Plugins) ptpAdd(ctx context.Context, c *Call) (result *current.Result, err error) {
	var conf ptpConf
	if err := json.Unmarshal(c.Config, &conf); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if _, err := ipamType(c.Config); err != nil {
		return nil, err
	}
	if result, err = hostLocalAdd(ctx, c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, hostLocalDel(context.WithoutCancel(ctx), c))
		}
	}()
	for _, ip := range result.IPs {
		ip.Interface = current.Int(1)
		if err := enableForwarding(isV4(ip.Address.IP)); err != nil {
			return nil, err
		}
	}
	box, err := openSandbox(c.NetNS, nil)
	if err != nil {
		return nil, err
	}
	defer box.close()
	hostEnd, err := (&veth{ifName: c.IfName, mtu: conf.MTU, name: vethName}).add(box)
	if err != nil {
		return nil, err
	}
	if err := box.point(ctx, c, result); err != nil {
		return nil, err
	}
	port, err := pointHost(hostEnd, result)
	if err != nil {
		return nil, err
	}
	result.Interfaces[0].Name, result.Interfaces[0].Mac = hostEnd, port.Attrs().HardwareAddr.String()
	if setsDNS(conf.DNS) {
		result.DNS = conf.DNS
	}
	return result, nil
}

// point sets up the sandbox's end. All traffic goes by the gateway, that of the own
// subnet too: the route that the kernel has for that is replaced.
func (s *sandbox) point(ctx context.Context, c *Call, result *current.Result) error {
	link, err := s.link.LinkByName(c.IfName)
	if err != nil {
		return err
	}
	result.Interfaces = []*current.Interface{{}, {Name: c.IfName, Mac: link.Attrs().HardwareAddr.String(), Sandbox: s.path}}
	if err := s.enter(func() error { return enableIPv6(c.IfName, result.IPs) }); err != nil {
		return err
	}
	// Only the node is at the other end, and it has the gateway's address: there is
	// nobody to detect, and the sandbox can use its address at once.
	if err := s.configure(ctx, link, result, true); err != nil {
		return err
	}
	index := link.Attrs().Index
	for _, ip := range result.IPs {
		subnet := &net.IPNet{IP: ip.Address.IP.Mask(ip.Address.Mask), Mask: ip.Address.Mask}
		if err := s.link.RouteDel(&netlink.Route{LinkIndex: index, Dst: subnet, Scope: netlink.SCOPE_NOWHERE}); err != nil {
			return fmt.Errorf("remove the route to %s: %w", subnet, err)
		}
		gateway := &net.IPNet{IP: ip.Gateway, Mask: hostMask(ip.Address.IP)}
		for _, route := range []*netlink.Route{
			{LinkIndex: index, Dst: gateway, Scope: netlink.SCOPE_LINK, Src: ip.Address.IP},
			{LinkIndex: index, Dst: subnet, Scope: netlink.SCOPE_UNIVERSE, Gw: ip.Gateway, Src: ip.Address.IP},
		} {
			if err := s.link.RouteAdd(route); err != nil {
				return fmt.Errorf("add the route to %s: %w", route.Dst, err)
			}
		}
	}
	return nil
}

// pointHost gives the host's end the gateway's addresses and routes to the sandbox's.
func pointHost(name string, result *current.Result) (netlink.Link, error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	link, err := host.LinkByName(name)
	if err != nil {
		return nil, err
	}
	for _, ip := range result.IPs {
		mask := hostMask(ip.Address.IP)
		address := &netlink.Addr{IPNet: &net.IPNet{IP: ip.Gateway, Mask: mask}}
		if !isV4(ip.Address.IP) {
			address.Flags = unix.IFA_F_NODAD // as in the sandbox
		}
		if err := host.AddrAdd(link, address); err != nil {
			return nil, fmt.Errorf("add the gateway's address %s to %s: %w", ip.Gateway, name, err)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: ip.Address.IP, Mask: mask}, Scope: netlink.SCOPE_HOST}
		if err := host.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("add the route to %s: %w", ip.Address.IP, err)
		}
	}
	return link, nil
}

// ptpDel undoes ptpAdd: first the way to the sandbox is closed, then its addresses
// are free.
func (p *Plugins) ptpDel(ctx context.Context, c *Call) (*current.Result, error) {
	var conf ptpConf
	if err := json.Unmarshal(c.Config, &conf); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := p.cut(c); err != nil {
		return nil, err
	}
	return nil, releaseAddresses(ctx, c)
}
