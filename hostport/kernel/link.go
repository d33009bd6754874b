package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Link is a network interface.
type Link struct {
	Index int
	Name  string
	// Kind is the kernel's name for the type, such as bridge, veth or macvlan. It is
	// empty for hardware.
	Kind string
	// Peer is the index of a veth's other end, in the namespace that end is in.
	Peer int
	// Bridge is the index of the Linux bridge that the link is a port of, 0 if none.
	Bridge int
	// Hairpin is the hairpin mode of a bridge port.
	Hairpin bool
	// Promiscuous is set if an administrator or a plugin made the link promiscuous
	// (IFF_PROMISC); a packet capture alone does not set it.
	Promiscuous bool
	// RouteLocalnet is net.ipv4.conf.NAME.route_localnet.
	RouteLocalnet bool
}

const (
	// devconfRouteLocalnet is IPV4_DEVCONF_ROUTE_LOCALNET of linux/ip.h.
	devconfRouteLocalnet = 26
	// extSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
	extSkipStats = 1 << 3
)

// LinkByName looks an interface of a namespace up. The error is unix.ENODEV if
// there is none.
func LinkByName(netns int, name string) (l Link, err error) {
	err = withRtnl(netns, func(r *rtnl) error {
		l, err = r.linkByName(name)
		return err
	})
	return l, err
}

// LinkByIndex looks an interface of a namespace up. The error is unix.ENODEV if
// there is none.
func LinkByIndex(netns, index int) (l Link, err error) {
	err = withRtnl(netns, func(r *rtnl) error {
		l, err = r.linkByIndex(index)
		return err
	})
	return l, err
}

// SetHairpin lets a bridge port send a frame out where it came in.
func SetHairpin(netns int, port Link) error {
	encoder := netlink.NewAttributeEncoder()
	encoder.Nested(unix.IFLA_PROTINFO, func(e *netlink.AttributeEncoder) error {
		e.Uint8(unix.IFLA_BRPORT_MODE, 1)
		return nil
	})
	return withRtnl(netns, func(r *rtnl) error {
		_, err := r.ask(unix.RTM_SETLINK, netlink.Acknowledge, linkInfo(unix.AF_BRIDGE, port.Index), encoder)
		if err != nil {
			return fmt.Errorf("set hairpin mode of the bridge port %s: %w", port.Name, err)
		}
		return nil
	})
}

// RouteLocalnet reads net.ipv4.conf.NAME.route_localnet of the named interfaces.
// Those that do not exist are left out.
func (k *Kernel) RouteLocalnet(names []string) (map[string]bool, error) {
	state := make(map[string]bool, len(names))
	err := withRtnl(k.netns, func(r *rtnl) error {
		for _, name := range names {
			l, err := r.linkByName(name)
			switch {
			case err == nil:
				state[name] = l.RouteLocalnet
			case !errors.Is(err, unix.ENODEV):
				return fmt.Errorf("read net.ipv4.conf.%s.route_localnet: %w", name, err)
			}
		}
		return nil
	})
	return state, err
}

// SetRouteLocalnet sets net.ipv4.conf.NAME.route_localnet, over netlink, which
// works in every namespace and where /proc/sys cannot be written. An interface
// that does not exist is no error.
func (k *Kernel) SetRouteLocalnet(name string, on bool) error {
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
	err := withRtnl(k.netns, func(r *rtnl) error {
		l, err := r.linkByName(name)
		if err != nil {
			return err
		}
		_, err = r.ask(unix.RTM_SETLINK, netlink.Acknowledge, linkInfo(unix.AF_UNSPEC, l.Index), encoder)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("set net.ipv4.conf.%s.route_localnet to %d: %w", name, value, err)
	}
	return nil
}

// rtnl is a socket for links, routes and addresses (rtnetlink(7)).
type rtnl struct{ conn *netlink.Conn }

// withRtnl runs f with a socket of its own.
func withRtnl(netns int, f func(*rtnl) error) error {
	conn, err := dial(unix.NETLINK_ROUTE, netns)
	if err != nil {
		return err
	}
	return errors.Join(f(&rtnl{conn}), conn.Close())
}

func rtnlMessage(kind int, flags netlink.HeaderFlags, header []byte, e *netlink.AttributeEncoder) (netlink.Message, error) {
	body, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   append(header, body...),
	}, err
}

// ask sends a request that is not for a list and returns the answer, nil if that is
// a mere acknowledgement.
func (r *rtnl) ask(kind int, flags netlink.HeaderFlags, header []byte, e *netlink.AttributeEncoder) ([]byte, error) {
	request, err := rtnlMessage(kind, flags, header, e)
	if err != nil {
		return nil, err
	}
	replies, err := r.conn.Execute(request)
	if err != nil || len(replies) == 0 {
		return nil, err
	}
	return replies[0].Data, nil
}

func (r *rtnl) linkByName(name string) (Link, error) {
	l, err := r.link(0, func(e *netlink.AttributeEncoder) { e.String(unix.IFLA_IFNAME, name) })
	if err != nil {
		return Link{}, fmt.Errorf("look up the interface %s: %w", name, err)
	}
	return l, nil
}

func (r *rtnl) linkByIndex(index int) (Link, error) {
	l, err := r.link(index, func(*netlink.AttributeEncoder) {})
	if err != nil {
		return Link{}, fmt.Errorf("look up the interface with index %d: %w", index, err)
	}
	return l, nil
}

func (r *rtnl) link(index int, more func(*netlink.AttributeEncoder)) (Link, error) {
	encoder := netlink.NewAttributeEncoder()
	encoder.Uint32(unix.IFLA_EXT_MASK, extSkipStats)
	more(encoder)
	data, err := r.ask(unix.RTM_GETLINK, 0, linkInfo(unix.AF_UNSPEC, index), encoder)
	if err != nil {
		return Link{}, err
	}
	if len(data) < unix.SizeofIfInfomsg {
		return Link{}, errors.New("the kernel's answer is too short")
	}
	return readLink(data)
}

// linkInfo is a struct ifinfomsg.
func linkInfo(family byte, index int) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

func readLink(data []byte) (Link, error) {
	l := Link{
		Index:       int(int32(binary.NativeEndian.Uint32(data[4:]))),
		Promiscuous: binary.NativeEndian.Uint32(data[8:])&unix.IFF_PROMISC != 0,
	}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return l, err
	}
	master, isPort := 0, false
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			l.Name = d.String()
		case unix.IFLA_LINK:
			l.Peer = int(d.Int32())
		case unix.IFLA_MASTER:
			master = int(d.Uint32())
		case unix.IFLA_LINKINFO:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				isPort = l.readInfo(d)
				return nil
			})
		case unix.IFLA_AF_SPEC:
			d.Nested(l.readAFSpec)
		}
	}
	if isPort {
		l.Bridge = master
	}
	return l, d.Err()
}

// readInfo reads IFLA_LINKINFO and reports whether the link is a port of a bridge.
func (l *Link) readInfo(d *netlink.AttributeDecoder) (isPort bool) {
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_INFO_KIND:
			l.Kind = d.String()
		case unix.IFLA_INFO_SLAVE_KIND:
			isPort = d.String() == "bridge"
		case unix.IFLA_INFO_SLAVE_DATA:
			if !isPort { // the kind comes first
				continue
			}
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == unix.IFLA_BRPORT_MODE {
						l.Hairpin = d.Uint8() != 0
					}
				}
				return nil
			})
		}
	}
	return isPort
}

func (l *Link) readAFSpec(d *netlink.AttributeDecoder) error {
	for d.Next() {
		if d.Type() != unix.AF_INET {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				// An array of u32, one for each setting, from setting 1 on.
				if b := d.Bytes(); d.Type() == unix.IFLA_INET_CONF && len(b) >= 4*devconfRouteLocalnet {
					l.RouteLocalnet = binary.NativeEndian.Uint32(b[4*(devconfRouteLocalnet-1):]) != 0
				}
			}
			return nil
		})
	}
	return nil
}
