package node

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The uplink's addresses, from the ranges for documentation (RFC 5737 and
// RFC 3849). Each node has an outside of its own, so that all have the same.
const (
	NodeIPv4    = "198.51.100.2"
	NodeIPv6    = "2001:db8:100::2"
	OutsideIPv4 = "198.51.100.1"
	OutsideIPv6 = "2001:db8:100::1"

	prefixIPv4 = "/24"
	prefixIPv6 = "/64"

	// Uplink is the name of the node's device to the outside.
	Uplink = "eth0"
)

// connect lays the uplink between the outside and the node and makes the node
// a router.
func (n *Node) connect() error {
	outside, node := n.Outside, n.Place
	far, err := netlink.NewHandleAt(netns.NsHandle(outside.net.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink outside: %w", err)
	}
	defer far.Close()
	near, err := netlink.NewHandleAt(netns.NsHandle(node.net.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the node: %w", err)
	}
	defer near.Close()

	attrs := netlink.NewLinkAttrs()
	attrs.Name = uplinkPort(n.number)
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: Uplink, PeerNamespace: netlink.NsFd(node.net.Fd())}
	if err := far.LinkAdd(veth); err != nil {
		return fmt.Errorf("add the uplink: %w", err)
	}
	ends := []struct {
		handle *netlink.Handle
		link   string
		addrs  []string
	}{
		{far, "lo", nil},
		{far, attrs.Name, []string{OutsideIPv4 + prefixIPv4, OutsideIPv6 + prefixIPv6}},
		{near, "lo", nil},
		{near, Uplink, []string{n.IPv4() + prefixIPv4, n.IPv6() + prefixIPv6}},
	}
	if n.number > 0 { // the bridge has the outside's addresses
		ends[1].addrs = nil
		if err := plug(far, attrs.Name); err != nil {
			return err
		}
	}
	for _, end := range ends {
		if err := up(end.handle, end.link, end.addrs); err != nil {
			return err
		}
	}
	for _, gateway := range []string{OutsideIPv4, OutsideIPv6} {
		route := &netlink.Route{Gw: net.ParseIP(gateway)}
		if err := near.RouteAdd(route); err != nil {
			return fmt.Errorf("add the node's default route by %s: %w", gateway, err)
		}
	}
	return node.Do(func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644))
	})
}

// up gives link its addresses and sets it up.
func up(handle *netlink.Handle, name string, addrs []string) error {
	link, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find device %s: %w", name, err)
	}
	for _, text := range addrs {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address %s: %w", text, err)
		}
		if addr.IP.To4() == nil {
			// Nobody else can have the address, so that duplicate detection is not needed.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := handle.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("give %s the address %s: %w", name, text, err)
		}
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}
