package builtin

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
	vethInfoPeer = 1
	// nameTries is how many random names are tried for the host's end.
	nameTries = 10
	// dumpTries is how often a list is read that changes meanwhile.
	dumpTries = 5
)

// veth is a pair to make: the host's end, and the other one in a sandbox.
type veth struct {
	ifName string        // in the sandbox
	mtu    int           // bytes; 0 is the kernel's default
	mac    string        // of the sandbox's end; empty is a random one
	master int           // index of the bridge for the host's end; 0 for none
	name   func() string // makes a name for the host's end
}

// add makes the pair with its ends in their places, the host's end up and attached
// to the bridge: one message. It returns the name of the host's end.
func (v *veth) add(s *sandbox) (string, error) {
	var mac net.HardwareAddr
	if v.mac != "" {
		var err error
		if mac, err = net.ParseMAC(v.mac); err != nil {
			return "", fmt.Errorf("make a veth pair: %w", err)
		}
	}
	for range nameTries {
		name := v.name()
		_, err := v.request(name, int(s.file.Fd()), mac).Execute(unix.NETLINK_ROUTE, 0)
		switch {
		case err == nil:
			trySysctl("ipv6/conf/"+name+"/accept_ra", "0")
			return name, nil
		case !errors.Is(err, unix.EEXIST):
			return "", fmt.Errorf("make a veth pair for %s: %w", v.ifName, err)
		}
		if _, err := s.link.LinkByName(v.ifName); err == nil {
			return "", fmt.Errorf("the sandbox has an interface %s already", v.ifName)
		}
	}
	return "", errors.New("no free name for the host's end of a veth pair")
}

// vethName returns a random name in the reference plugins' form: others know the
// ends of pods by it.
func vethName() string {
	random := make([]byte, 4)
	_, _ = rand.Read(random) // never fails
	return fmt.Sprintf("veth%x", random)
}

func (v *veth) request(name string, netns int, mac net.HardwareAddr) *nl.NetlinkRequest {
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	header := nl.NewIfInfomsg(unix.AF_UNSPEC)
	header.Flags, header.Change = unix.IFF_UP, unix.IFF_UP
	request.AddData(header)
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	// The queue of packets is empty, as with the reference plugins: veth needs none.
	request.AddData(nl.NewRtAttr(unix.IFLA_TXQLEN, nl.Uint32Attr(0)))
	if v.master != 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.master))))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vethInfoPeer, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.ifName))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(netns)))
	if mac != nil {
		peer.AddRtAttr(unix.IFLA_ADDRESS, mac)
	}
	if v.mtu > 0 {
		request.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu))))
		peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu)))
	}
	request.AddData(info)
	return request
}

// setPort sets hairpin mode and isolation of a bridge port.
func setPort(index int, hairpin, isolated bool) error {
	if !hairpin && !isolated {
		return nil // a new port has neither
	}
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	header := nl.NewIfInfomsg(unix.AF_BRIDGE)
	header.Index = int32(index)
	request.AddData(header)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	if hairpin {
		port.AddRtAttr(unix.IFLA_BRPORT_MODE, []byte{1})
	}
	if isolated {
		port.AddRtAttr(unix.IFLA_BRPORT_ISOLATED, []byte{1})
	}
	request.AddData(port)
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set hairpin mode and isolation of the bridge port: %w", err)
	}
	return nil
}

// listed reads a list, again when it changed meanwhile.
func listed[T any](read func() ([]T, error)) (list []T, err error) {
	for range dumpTries {
		if list, err = read(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}
