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

const (
	// settleTimeout is how long addresses may take to pass duplicate address
	// detection, which takes a second or two.
	settleTimeout = 5 * time.Second
	settlePoll    = 20 * time.Millisecond
)

// configure gives the sandbox's interface the addresses and routes of a result, in the
// reference plugins' order: addresses, up, routes. The kernel announces the
// addresses when the interface comes up, if arp_notify is set.
func (s *sandbox) configure(ctx context.Context, link netlink.Link, result *current.Result, nodad bool) error {
	v6 := false
	for _, ip := range result.IPs {
		address := &netlink.Addr{IPNet: &ip.Address}
		if !isV4(ip.Address.IP) && nodad {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := s.link.AddrAdd(link, address); err != nil {
			return fmt.Errorf("add the address %s to %s: %w", ip.Address.String(), link.Attrs().Name, err)
		}
		v6 = v6 || ip.Gateway != nil && !isV4(ip.Gateway)
	}
	if err := s.link.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", link.Attrs().Name, err)
	}
	if v6 && !nodad {
		if err := s.settle(ctx, link); err != nil {
			return err
		}
	}
	return s.addRoutes(link, result)
}

// enableIPv6 sets what a sandbox's interface needs that gets an address of IPv6. It
// runs in the sandbox.
func enableIPv6(ifName string, ips []*current.IPConfig) error {
	for _, ip := range ips {
		if isV4(ip.Address.IP) {
			continue
		}
		for _, name := range []string{"lo", ifName} {
			if err := needSysctl("ipv6/conf/"+name+"/disable_ipv6", "0"); err != nil {
				return fmt.Errorf("enable IPv6 on %s: %w", name, err)
			}
		}
		return setSysctl("ipv6/conf/"+ifName+"/keep_addr_on_down", "1")
	}
	return nil
}

// settle waits until no address of IPv6 is tentative: a program could not use it.
func (s *sandbox) settle(ctx context.Context, link netlink.Link) error {
	name := link.Attrs().Name
	for deadline := time.Now().Add(settleTimeout); ; {
		all, err := listed(func() ([]netlink.Addr, error) { return s.link.AddrList(link, netlink.FAMILY_V6) })
		if err != nil {
			return fmt.Errorf("list the addresses of %s: %w", name, err)
		}
		tentative := false
		for _, a := range all {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("another interface has the address %s of %s (duplicate address detection)", a.IP, name)
			}
			tentative = tentative || a.Flags&unix.IFA_F_TENTATIVE != 0
		}
		switch {
		case !tentative:
			return nil
		case time.Now().After(deadline):
			now, err := s.link.LinkByIndex(link.Attrs().Index)
			if err != nil {
				return err
			}
			if now.Attrs().OperState == netlink.OperUp {
				return fmt.Errorf("%s has tentative addresses after %s", name, settleTimeout)
			}
			return nil // it has no carrier, so that nothing can be detected
		case !backoff.Sleep(ctx, settlePoll):
			return context.Cause(ctx)
		}
	}
}

// addRoutes adds the routes of a result; those without a gateway go by the first one
// of their family.
func (s *sandbox) addRoutes(link netlink.Link, result *current.Result) error {
	for _, r := range result.Routes {
		route := &netlink.Route{Dst: &r.Dst, LinkIndex: link.Attrs().Index, Gw: r.GW, Priority: r.Priority}
		if route.Gw == nil {
			route.Gw = gatewayOf(result.IPs, isV4(r.Dst.IP))
		}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = netlink.Scope(*r.Scope)
		}
		if err := s.link.RouteAddEcmp(route); err != nil {
			return fmt.Errorf("add the route to %s via %v on %s: %w", r.Dst.String(), route.Gw, link.Attrs().Name, err)
		}
	}
	return nil
}

// gatewayOf returns the first gateway of an IP family, or nil.
func gatewayOf(ips []*current.IPConfig, v4 bool) net.IP {
	for _, ip := range ips {
		if ip.Gateway != nil && isV4(ip.Gateway) == v4 {
			return ip.Gateway
		}
	}
	return nil
}

func isV4(ip net.IP) bool { return ip.To4() != nil }

// hostMask is the mask of a single address.
func hostMask(ip net.IP) net.IPMask {
	if isV4(ip) {
		return net.CIDRMask(32, 32)
	}
	return net.CIDRMask(128, 128)
}

// isNotFound says that a link does not exist, or not any more.
func isNotFound(err error) bool {
	return errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV)
}
