package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/backoff"
)

// portTimeout is how long a bridge port may take to come up. It comes up when both
// ends of its veth pair are.
const portTimeout = 2550 * time.Millisecond

// bridgeAdd attaches a sandbox to a Linux bridge, which it makes if there is none.
func (p *Plugins) bridgeAdd(ctx context.Context, c *Call) (result *current.Result, err error) {
	conf, err := readBridgeConf(c)
	if err == nil {
		err = conf.valid()
	}
	if err != nil {
		return nil, err
	}
	ipam, err := ipamType(c.Config)
	if err != nil {
		return nil, err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer host.Close()
	bridge, err := ensureBridge(host, conf)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", conf.Bridge, err)
	}
	box, err := openSandbox(c.NetNS, nil)
	if err != nil {
		return nil, err
	}
	defer box.close()
	pair := &veth{ifName: c.IfName, mtu: conf.MTU, mac: conf.mac, master: bridge.Attrs().Index, name: vethName}
	hostEnd, err := pair.add(box)
	if err != nil {
		return nil, err
	}
	if err := setPort(host, hostEnd, conf.HairpinMode, conf.PortIsolation); err != nil {
		return nil, err
	}
	link, err := box.link.LinkByName(c.IfName)
	if err != nil {
		return nil, err
	}
	result = &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{
		{Name: conf.Bridge}, {Name: hostEnd}, {Name: c.IfName, Mac: link.Attrs().HardwareAddr.String(), Sandbox: c.NetNS},
	}}
	switch {
	case ipam != "":
		err = p.addLayer3(ctx, c, conf, host, bridge, box, link, result)
	case !conf.DisableContainerInterface:
		err = box.link.LinkSetUp(link)
	}
	if err == nil {
		err = conf.complete(ctx, host, result)
	}
	if err != nil && ipam != "" && len(result.IPs) > 0 {
		err = errors.Join(err, hostLocalDel(context.WithoutCancel(ctx), c))
	}
	return result, err
}

// addLayer3 gives the sandbox addresses, and the bridge those of the gateways.
func (p *Plugins) addLayer3(ctx context.Context, c *Call, conf *bridgeConf, host *netlink.Handle, bridge *netlink.Bridge, box *sandbox, link netlink.Link, result *current.Result) error {
	ipam, err := hostLocalAdd(ctx, c)
	if err != nil {
		return err
	}
	result.IPs, result.Routes, result.DNS = ipam.IPs, ipam.Routes, ipam.DNS
	gateways := conf.gateways(result)
	err = box.enter(func() error {
		if conf.EnableDAD {
			trySysctl("ipv6/conf/"+c.IfName+"/enhanced_dad", "1")
			trySysctl("ipv6/conf/"+c.IfName+"/accept_dad", "1")
		} else {
			trySysctl("ipv6/conf/"+c.IfName+"/accept_dad", "0")
		}
		trySysctl("ipv4/conf/"+c.IfName+"/arp_notify", "1")
		return enableIPv6(c.IfName, result.IPs)
	})
	if err != nil {
		return err
	}
	if err := box.configure(ctx, link, result, !conf.EnableDAD); err != nil {
		return err
	}
	for i, gateway := range gateways {
		if err := p.ensureAddress(host, conf, bridge, gateway); err != nil {
			return fmt.Errorf("bridge %s: %w", conf.Bridge, err)
		}
		if v4 := isV4(gateway.IP); i == len(gateways)-1 || isV4(gateways[i+1].IP) != v4 { // the family's last
			if err := enableForwarding(v4); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete waits until the bridge port is up and fills in what may have changed
// meanwhile.
func (conf *bridgeConf) complete(ctx context.Context, host *netlink.Handle, result *current.Result) error {
	port, err := awaitPort(ctx, host, result.Interfaces[1].Name, !conf.DisableContainerInterface)
	if err != nil {
		return err
	}
	// The bridge takes another address when it gets a port or an address.
	bridge, err := bridgeByName(host, conf.Bridge)
	if err != nil {
		return err
	}
	result.Interfaces[0].Mac = bridge.Attrs().HardwareAddr.String()
	result.Interfaces[1].Mac = port.Attrs().HardwareAddr.String()
	if setsDNS(conf.DNS) {
		result.DNS = conf.DNS
	}
	return nil
}

// awaitPort returns a bridge port, if up is set once it is up: traffic passes then.
func awaitPort(ctx context.Context, host *netlink.Handle, name string, up bool) (netlink.Link, error) {
	wait := backoff.Backoff{First: time.Millisecond, Max: 50 * time.Millisecond}
	for deadline := time.Now().Add(portTimeout); ; {
		port, err := host.LinkByName(name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("the bridge port %s: %w", name, err)
		case !up || port.Attrs().OperState == netlink.OperUp:
			return port, nil
		case time.Now().After(deadline):
			return nil, fmt.Errorf("the bridge port %s is %s after %s", name, port.Attrs().OperState, portTimeout)
		case !backoff.Sleep(ctx, wait.Next()):
			return nil, context.Cause(ctx)
		}
	}
}

// ensureBridge returns the bridge, up. It makes it if there is none; two that do so at
// once get the same.
func ensureBridge(host *netlink.Handle, conf *bridgeConf) (*netlink.Bridge, error) {
	bridge, err := bridgeByName(host, conf.Bridge)
	if isNotFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = conf.Bridge, conf.MTU
		if err := host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("make it: %w", err)
		}
		bridge, err = bridgeByName(host, conf.Bridge)
	}
	if err != nil {
		return nil, err
	}
	if conf.PromiscMode {
		if err := host.SetPromiscOn(bridge); err != nil {
			return nil, fmt.Errorf("set it promiscuous: %w", err)
		}
	}
	trySysctl("ipv6/conf/"+conf.Bridge+"/accept_ra", "0")
	if bridge.Attrs().Flags&net.FlagUp == 0 {
		if err := host.LinkSetUp(bridge); err != nil {
			return nil, fmt.Errorf("set it up: %w", err)
		}
	}
	return bridge, nil
}

func bridgeByName(host *netlink.Handle, name string) (*netlink.Bridge, error) {
	link, err := host.LinkByName(name)
	if err != nil {
		return nil, err
	}
	bridge, ok := link.(*netlink.Bridge)
	if !ok {
		return nil, fmt.Errorf("%s is a link of kind %s", name, link.Type())
	}
	return bridge, nil
}

// ensureAddress gives the bridge the address of a gateway, unless it has it.
func (p *Plugins) ensureAddress(host *netlink.Handle, conf *bridgeConf, bridge *netlink.Bridge, address *net.IPNet) error {
	if missing, err := conf.missing(host, bridge, address, func(*net.IPNet) error { return nil }); err != nil || !missing {
		return err
	}
	p.bridges.Lock()
	defer p.bridges.Unlock()
	bridge, err := bridgeByName(host, conf.Bridge) // as it is now
	if err != nil {
		return err
	}
	missing, err := conf.missing(host, bridge, address, func(other *net.IPNet) error {
		if err := host.AddrDel(bridge, &netlink.Addr{IPNet: other}); err != nil {
			return fmt.Errorf("remove the address %s: %w", other, err)
		}
		return nil
	})
	if err != nil || !missing {
		return err
	}
	// A MAC address that is set stays; else the bridge has that of one of its ports.
	// It is set first: who finds the address does not wait for the lock.
	if err := host.LinkSetHardwareAddr(bridge, bridge.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("keep its MAC address: %w", err)
	}
	if err := host.AddrAdd(bridge, &netlink.Addr{IPNet: address}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add the address %s: %w", address, err)
	}
	return nil
}

// missing says whether the bridge lacks an address. It may have several of IPv6 whose
// subnets do not overlap; another one in the way is given to replace with
// forceAddress, and otherwise an error.
func (conf *bridgeConf) missing(host *netlink.Handle, bridge netlink.Link, address *net.IPNet, replace func(*net.IPNet) error) (bool, error) {
	family := netlink.FAMILY_V6
	if isV4(address.IP) {
		family = netlink.FAMILY_V4
	}
	has, err := listed(func() ([]netlink.Addr, error) { return host.AddrList(bridge, family) })
	if err != nil {
		return false, fmt.Errorf("list its addresses: %w", err)
	}
	for _, other := range has {
		switch {
		case other.IPNet.String() == address.String():
			return false, nil
		case family == netlink.FAMILY_V6 && !other.Contains(address.IP) && !address.Contains(other.IP):
		case !conf.ForceAddress:
			return false, fmt.Errorf("it has the address %s, not %s: remove the bridge when the pods on it are gone, or have forceAddress replace it", other.IPNet, address)
		default:
			if err := replace(other.IPNet); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// bridgeDel undoes bridgeAdd: first the way to the sandbox is closed, then its
// addresses are free.
func (p *Plugins) bridgeDel(ctx context.Context, c *Call) (*current.Result, error) {
	if _, err := readBridgeConf(c); err != nil {
		return nil, err
	}
	if err := p.cut(c); err != nil {
		return nil, err
	}
	return nil, releaseAddresses(ctx, c)
}

// releaseAddresses frees what the IPAM of a configuration has reserved.
func releaseAddresses(ctx context.Context, c *Call) error {
	ipam, err := ipamType(c.Config)
	if err != nil || ipam == "" {
		return err
	}
	return hostLocalDel(ctx, c)
}
