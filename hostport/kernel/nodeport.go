package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// NodePort is a port of the node's own addresses that a Service has.
type NodePort struct {
	Family   byte // unix.AF_INET or AF_INET6
	Protocol byte // as in the IP header
	Port     uint16
}

// nodePortSets are the ipsets in which kube-proxy in IPVS mode keeps node ports
// (pkg/proxy/ipvs/ipset.go). Those of TCP and UDP hold ports only, so that the
// name says the protocol.
func nodePortSets() map[string]NodePort {
	return map[string]NodePort{
		"KUBE-NODE-PORT-TCP":         {Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP},
		"KUBE-NODE-PORT-UDP":         {Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP},
		"KUBE-NODE-PORT-SCTP-HASH":   {Family: unix.AF_INET, Protocol: unix.IPPROTO_SCTP},
		"KUBE-6-NODE-PORT-TCP":       {Family: unix.AF_INET6, Protocol: unix.IPPROTO_TCP},
		"KUBE-6-NODE-PORT-UDP":       {Family: unix.AF_INET6, Protocol: unix.IPPROTO_UDP},
		"KUBE-6-NODE-PORT-SCTP-HASH": {Family: unix.AF_INET6, Protocol: unix.IPPROTO_SCTP},
	}
}

// Of linux/netfilter/ipset/ip_set.h. Protocol 6 is known from Linux 2.6.39 on.
const (
	ipsetList     = 7
	ipsetProtocol = 6

	ipsetAttrProtocol = 1
	ipsetAttrSetName  = 2
	ipsetAttrPort     = 4
	ipsetAttrData     = 7
	ipsetAttrElements = 8
)

// NodePorts lists the node ports that kube-proxy in IPVS mode serves, each with the
// name of the ipset that has it. It looks for them only if one of the interfaces
// exists: to ask for ipsets makes the kernel load their module.
func (k *Kernel) NodePorts(interfaces []string) (map[NodePort]string, error) {
	there := false
	for _, name := range interfaces {
		if _, err := LinkByName(k.netns, name); err == nil {
			there = true
		} else if !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
	}
	if !there {
		return nil, nil
	}
	conn, err := dial(unix.NETLINK_NETFILTER, k.netns)
	if err != nil {
		return nil, err
	}
	found := make(map[NodePort]string)
	for name, of := range nodePortSets() {
		if err = readPorts(conn, name, of, found); err != nil {
			err = fmt.Errorf("read ipset %s: %w", name, err)
			break
		}
	}
	return found, errors.Join(err, conn.Close())
}

// readPorts adds the ports of an ipset. A set that does not exist has none, nor has
// any on a kernel without ipsets.
func readPorts(conn *netlink.Conn, name string, of NodePort, found map[NodePort]string) error {
	body, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: ipsetAttrProtocol, Data: []byte{ipsetProtocol}}, attribute(ipsetAttrSetName, name),
	})
	if err != nil {
		return err
	}
	request := netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_IPSET<<8 | ipsetList},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, body...),
	}
	replies, err := collect(conn, request, nfgenmsgLen)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, reply := range replies {
		err := within(reply[nfgenmsgLen:], []uint16{ipsetAttrElements, ipsetAttrData, ipsetAttrPort}, func(port []byte) error {
			if len(port) != 2 {
				return fmt.Errorf("a port of %d bytes", len(port))
			}
			of.Port = binary.BigEndian.Uint16(port)
			found[of] = name
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// within visits all attributes at a path of nested attributes.
func within(data []byte, path []uint16, visit func([]byte) error) error {
	if len(path) == 0 {
		return visit(data)
	}
	return eachAttribute(data, func(kind uint16, value []byte) error {
		if kind != path[0] {
			return nil
		}
		return within(value, path[1:], visit)
	})
}
