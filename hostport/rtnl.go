package hostport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// rtnl asks and tells the kernel about links and routes (rtnetlink(7)).
type rtnl struct{ conn *netlink.Conn }

func dialRtnl(netns int) (*rtnl, error) {
	conn, err := dial(unix.NETLINK_ROUTE, netns)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for links and routes: %w", err)
	}
	return &rtnl{conn}, nil
}

// dial opens a netlink socket that waits no longer for answers than makes sense.
func dial(protocol, netns int) (*netlink.Conn, error) {
	conn, err := netlink.Dial(protocol, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(kernelPatience)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// withRtnl runs f with a socket of its own.
func withRtnl(netns int, f func(*rtnl) error) error {
	r, err := dialRtnl(netns)
	if err != nil {
		return err
	}
	return errors.Join(f(r), r.conn.Close())
}

// link is what we care for in a network interface.
type link struct {
	index int
	name  string
	// kind is empty for hardware.
	kind string
	// peer is the index of a veth's other end, in the other end's namespace.
	peer int
	// bridgePort is set if the link is a port of a Linux bridge; hairpin is then
	// the port's hairpin mode.
	bridgePort, hairpin bool
	routeLocalnet       bool
}

const (
	// devconfRouteLocalnet is IPV4_DEVCONF_ROUTE_LOCALNET of linux/ip.h.
	devconfRouteLocalnet = 26
	// extSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
	extSkipStats = 1 << 3
)

// linkInfo is a struct ifinfomsg for one link, or for all with index 0.
func linkInfo(family byte, index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

func (r *rtnl) linkByName(name string) (link, error) {
	links, err := r.links(0, 0, func(e *netlink.AttributeEncoder) { e.String(unix.IFLA_IFNAME, name) })
	return one(links, err, "interface "+name)
}

func (r *rtnl) linkByIndex(index int) (link, error) {
	links, err := r.links(index, 0, nil)
	return one(links, err, fmt.Sprintf("interface %d", index))
}

func (r *rtnl) allLinks() ([]link, error) { return r.links(0, netlink.Dump, nil) }

func one(links []link, err error, what string) (link, error) {
	if err == nil && len(links) != 1 {
		err = unix.ENODEV
	}
	if err != nil {
		return link{}, fmt.Errorf("look up %s: %w", what, err)
	}
	return links[0], nil
}

func (r *rtnl) links(index int, flags netlink.HeaderFlags, more func(*netlink.AttributeEncoder)) ([]link, error) {
	encoder := netlink.NewAttributeEncoder()
	encoder.Uint32(unix.IFLA_EXT_MASK, extSkipStats)
	if more != nil {
		more(encoder)
	}
	replies, err := r.execute(unix.RTM_GETLINK, flags, linkInfo(unix.AF_UNSPEC, index), encoder)
	if err != nil {
		return nil, err
	}
	links := make([]link, 0, len(replies))
	for _, reply := range replies {
		if len(reply.Data) < unix.SizeofIfInfomsg {
			return nil, errors.New("the kernel's answer is too short")
		}
		l, err := readLink(reply.Data)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

func (r *rtnl) execute(kind int, flags netlink.HeaderFlags, header []byte, e *netlink.AttributeEncoder) ([]netlink.Message, error) {
	body, err := e.Encode()
	if err != nil {
		return nil, err
	}
	return r.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   append(header, body...),
	})
}

func readLink(data []byte) (link, error) {
	l := link{index: int(int32(binary.NativeEndian.Uint32(data[4:])))}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			l.name = d.String()
		case unix.IFLA_LINK:
			l.peer = int(d.Int32())
		case unix.IFLA_LINKINFO:
			d.Nested(l.readInfo)
		case unix.IFLA_AF_SPEC:
			d.Nested(l.readAFSpec)
		}
	}
	return l, d.Err()
}

func (l *link) readInfo(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_INFO_KIND:
			l.kind = d.String()
		case unix.IFLA_INFO_SLAVE_KIND:
			l.bridgePort = d.String() == "bridge"
		case unix.IFLA_INFO_SLAVE_DATA:
			if !l.bridgePort { // the kind comes first
				continue
			}
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == unix.IFLA_BRPORT_MODE {
						l.hairpin = d.Uint8() != 0
					}
				}
				return nil
			})
		}
	}
	return nil
}

func (l *link) readAFSpec(d *netlink.AttributeDecoder) error {
	for d.Next() {
		if d.Type() != unix.AF_INET {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				// An array of u32, one for each setting, from setting 1 on.
				if b := d.Bytes(); d.Type() == unix.IFLA_INET_CONF && len(b) >= 4*devconfRouteLocalnet {
					l.routeLocalnet = binary.NativeEndian.Uint32(b[4*(devconfRouteLocalnet-1):]) != 0
				}
			}
			return nil
		})
	}
	return nil
}

// setRouteLocalnet sets net.ipv4.conf.NAME.route_localnet. Over netlink that
// works in every namespace, and where /proc/sys can't be written.
func (r *rtnl) setRouteLocalnet(index int, on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	encoder := netlink.NewAttributeEncoder()
	encoder.Nested(unix.IFLA_AF_SPEC, func(e *netlink.AttributeEncoder) error {
		e.Nested(unix.AF_INET, func(e *netlink.AttributeEncoder) error {
			e.Nested(unix.IFLA_INET_CONF, func(e *netlink.AttributeEncoder) error {
				e.Uint32(devconfRouteLocalnet, value)
				return nil
			})
			return nil
		})
		return nil
	})
	_, err := r.execute(unix.RTM_SETLINK, netlink.Acknowledge, linkInfo(unix.AF_UNSPEC, index), encoder)
	return err
}

// setHairpin lets a port of a bridge send a frame out where it came in.
func (r *rtnl) setHairpin(index int) error {
	encoder := netlink.NewAttributeEncoder()
	encoder.Nested(unix.IFLA_PROTINFO, func(e *netlink.AttributeEncoder) error {
		e.Uint8(unix.IFLA_BRPORT_MODE, 1)
		return nil
	})
	_, err := r.execute(unix.RTM_SETLINK, netlink.Acknowledge, linkInfo(unix.AF_BRIDGE, index), encoder)
	return err
}

// addresses lists the addresses of the node that flows may go to, each once. Left
// out are ::1 and link-local ones of IPv6, of which each pod's veth has one.
func (r *rtnl) addresses() ([]netip.Addr, error) {
	header := make([]byte, unix.SizeofIfAddrmsg) // of all families and interfaces
	replies, err := r.execute(unix.RTM_GETADDR, netlink.Dump, header, netlink.NewAttributeEncoder())
	if err != nil {
		return nil, fmt.Errorf("list the node's addresses: %w", err)
	}
	found := make([]netip.Addr, 0, len(replies))
	for _, reply := range replies {
		if len(reply.Data) < unix.SizeofIfAddrmsg {
			return nil, errors.New("list the node's addresses: the kernel's answer is too short")
		}
		d, err := netlink.NewAttributeDecoder(reply.Data[unix.SizeofIfAddrmsg:])
		if err != nil {
			return nil, fmt.Errorf("list the node's addresses: %w", err)
		}
		var addr netip.Addr
		for d.Next() {
			// On point-to-point links IFA_ADDRESS is the other end's.
			if d.Type() == unix.IFA_LOCAL || d.Type() == unix.IFA_ADDRESS && !addr.IsValid() {
				addr, _ = netip.AddrFromSlice(d.Bytes())
			}
		}
		if err := d.Err(); err != nil {
			return nil, fmt.Errorf("list the node's addresses: %w", err)
		}
		skip := !addr.IsValid() || addr == netip.IPv6Loopback() || addr.Is6() && addr.IsLinkLocalUnicast()
		if !skip && !slices.Contains(found, addr) {
			found = append(found, addr)
		}
	}
	return found, nil
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
	header := make([]byte, unix.SizeofRtMsg)
	header[0] = unix.AF_INET6
	if addr.Is4() {
		header[0] = unix.AF_INET
	}
	header[1] = byte(addr.BitLen())
	encoder := netlink.NewAttributeEncoder()
	encoder.Bytes(unix.RTA_DST, addr.AsSlice())
	replies, err := r.execute(unix.RTM_GETROUTE, 0, header, encoder)
	if err != nil {
		return route{}, fmt.Errorf("look up the route to %s: %w", addr, err)
	}
	if len(replies) != 1 || len(replies[0].Data) < unix.SizeofRtMsg {
		return route{}, fmt.Errorf("look up the route to %s: the kernel's answer is too short", addr)
	}
	found := route{local: replies[0].Data[7] == unix.RTN_LOCAL}
	d, err := netlink.NewAttributeDecoder(replies[0].Data[unix.SizeofRtMsg:])
	if err != nil {
		return route{}, fmt.Errorf("look up the route to %s: %w", addr, err)
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
		return route{}, fmt.Errorf("look up the route to %s: %w", addr, err)
	}
	return found, nil
}

// unroutable says whether the error of routeTo means that there is no way.
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
