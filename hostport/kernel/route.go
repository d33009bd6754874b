package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Path is how the node reaches an address.
type Path struct {
	// Link is the interface on whose link the address is.
	Link Link
	// Bridge is the Linux bridge that a veth of the node leads to, as the gateway of a
	// bridge with a VLAN does; empty if it does not lead to any.
	Bridge string
	// Reason says why there is no such interface; empty if there is one.
	Reason string
}

// PathTo finds the interface behind which an address is.
func (k *Kernel) PathTo(addr netip.Addr) (p Path, err error) {
	err = withRtnl(k.netns, func(r *rtnl) error {
		way, err := r.routeTo(addr)
		switch {
		case err != nil && unroutable(err):
			p.Reason = err.Error()
			return nil
		case err != nil:
			return err
		case way.gateway || way.local:
			p.Reason = fmt.Sprintf("%s is not on a link of this node", addr)
			return nil
		}
		p.Link, err = r.linkByIndex(way.oif)
		if errors.Is(err, unix.ENODEV) {
			p.Reason = err.Error()
			return nil
		}
		if err == nil && p.Link.Kind == "veth" {
			p.Bridge, err = r.bridgeBehind(p.Link)
		}
		return err
	})
	return p, err
}

// bridgeBehind returns the bridge that the other end of a veth is a port of, if both
// are in this namespace.
func (r *rtnl) bridgeBehind(gateway Link) (string, error) {
	port, err := r.linkByIndex(gateway.Peer)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return "", nil // it is in another namespace
	}
	if err != nil || port.Kind != "veth" || port.Peer != gateway.Index || port.Bridge == 0 {
		return "", err
	}
	bridge, err := r.linkByIndex(port.Bridge)
	return bridge.Name, err
}

// IsLocal reports whether an address is the node's own.
func (k *Kernel) IsLocal(addr netip.Addr) (local bool, err error) {
	err = withRtnl(k.netns, func(r *rtnl) error {
		way, err := r.routeTo(addr)
		if err != nil && unroutable(err) {
			return nil
		}
		local = way.local
		return err
	})
	return local, err
}

// route is where the kernel would send a packet.
type route struct {
	local   bool // it stays on the node
	oif     int
	gateway bool
}

// routeTo looks a destination up. Where there is no way, the error is
// unix.ENETUNREACH or its like, see unroutable.
func (r *rtnl) routeTo(addr netip.Addr) (route, error) {
	fail := func(err error) (route, error) {
		return route{}, fmt.Errorf("look up the route to %s: %w", addr, err)
	}
	header := make([]byte, unix.SizeofRtMsg)
	header[0] = unix.AF_INET6
	if addr.Is4() {
		header[0] = unix.AF_INET
	}
	header[1] = byte(addr.BitLen())
	encoder := netlink.NewAttributeEncoder()
	encoder.Bytes(unix.RTA_DST, addr.AsSlice())
	data, err := r.ask(unix.RTM_GETROUTE, 0, header, encoder)
	if err != nil {
		return fail(err)
	}
	if len(data) < unix.SizeofRtMsg {
		return fail(errors.New("the kernel's answer is too short"))
	}
	found := route{local: data[7] == unix.RTN_LOCAL}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofRtMsg:])
	if err != nil {
		return fail(err)
	}
	for d.Next() {
		switch d.Type() {
		case unix.RTA_OIF:
			found.oif = int(d.Uint32())
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			found.gateway = true
		}
	}
	if err := d.Err(); err != nil {
		return fail(err)
	}
	return found, nil
}

// unroutable reports whether the error of routeTo means that there is no way.
func unroutable(err error) bool {
	for _, e := range []error{
		unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.ENETDOWN, unix.ENODEV, unix.EAGAIN, unix.ESRCH,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
