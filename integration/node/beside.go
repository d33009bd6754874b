package node

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// segment is the bridge outside that the uplinks of nodes side by side are
// ports of.
const segment = "segment"

// IPv4 is the node's address on its uplink.
func (n *Node) IPv4() string { return later(NodeIPv4, n.number) }

// IPv6 is the node's address on its uplink.
func (n *Node) IPv6() string { return later(NodeIPv6, n.number) }

// later is the address that comes that many places after base.
func later(base string, by int) string {
	addr := netip.MustParseAddr(base)
	for range by {
		addr = addr.Next()
	}
	return addr.String()
}

// shareOutside gives the node the network of another's outside, in which the
// uplinks of all are ports of one bridge.
func (n *Node) shareOutside(other *Node) error {
	outside, err := other.Outside.net.again()
	if err != nil {
		return fmt.Errorf("share the outside of another node: %w", err)
	}
	n.Outside = &Place{name: "outside", net: outside}
	n.number = other.number + 1
	handle, err := netlink.NewHandleAt(netns.NsHandle(outside.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink outside: %w", err)
	}
	defer handle.Close()
	var missing netlink.LinkNotFoundError
	if _, err := handle.LinkByName(segment); err == nil {
		return nil
	} else if !errors.As(err, &missing) {
		return fmt.Errorf("find device %s outside: %w", segment, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = segment
	if err := handle.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add the bridge outside: %w", err)
	}
	if err := plug(handle, uplinkPort(other.number)); err != nil {
		return err
	}
	return up(handle, segment, []string{OutsideIPv4 + prefixIPv4, OutsideIPv6 + prefixIPv6})
}

// uplinkPort is the outer end of a node's uplink.
func uplinkPort(number int) string {
	if number == 0 {
		return "node"
	}
	return fmt.Sprintf("node%d", number+1)
}

// plug makes a device a port of the bridge outside, which has the addresses
// instead of it.
func plug(handle *netlink.Handle, name string) error {
	port, err := handle.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find device %s outside: %w", name, err)
	}
	bridge, err := handle.LinkByName(segment)
	if err != nil {
		return fmt.Errorf("find device %s outside: %w", segment, err)
	}
	addrs, err := handle.AddrList(port, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list the addresses of %s outside: %w", name, err)
	}
	for _, addr := range addrs {
		if err := handle.AddrDel(port, &addr); err != nil {
			return fmt.Errorf("take %s from %s outside: %w", addr, name, err)
		}
	}
	if err := handle.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("make %s a port of %s outside: %w", name, segment, err)
	}
	return nil
}
