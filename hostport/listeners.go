package hostport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// From linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
const (
	sockDiagByFamily = 20
	inetDiagReqLen   = 56
	inetDiagMsgLen   = 72
	inetDiagSKV6Only = 11
	stateClose       = 7 // a UDP socket that is bound and not connected
	stateListen      = 10
)

// errNoSockDiag says that the kernel can't list sockets.
var errNoSockDiag = errors.New("the kernel can't list sockets (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG)")

// listener is a socket that takes what arrives at a port.
type listener struct {
	port portKey
	// addr is where it listens, in the sense of Mapping.HostIP.
	addr  netip.Addr
	inode uint32
	uid   uint32
}

// findListeners returns a conflict for each mapping that a host process listens
// on: one process per mapping. Sockets are listed, none is opened to try.
func findListeners(ctx context.Context, netns int, mappings []Mapping) ([]*ConflictError, error) {
	conn, err := dial(unix.NETLINK_SOCK_DIAG, netns)
	if err != nil {
		return nil, fmt.Errorf("list listening sockets: open a netlink socket: %w", err)
	}
	found, err := listenersOn(conn, mappings)
	if err := errors.Join(err, conn.Close()); err != nil {
		return nil, fmt.Errorf("list listening sockets: %w", err)
	}
	var conflicts []*ConflictError
	var holders []listener
	for _, m := range mappings {
		for _, l := range found[keyOf(m)] {
			if overlap(m.HostIP, l.addr) {
				conflicts = append(conflicts, &ConflictError{Mapping: m, Process: true})
				holders = append(holders, l)
				break
			}
		}
	}
	if len(conflicts) == 0 {
		return nil, nil
	}
	names, err := processesOf(ctx, "/proc", holders)
	if err != nil {
		return nil, err
	}
	for i, c := range conflicts {
		c.Holder = names[holders[i].inode]
	}
	return conflicts, nil
}

// listenersOn asks for one port where a protocol has just one, and else for all.
func listenersOn(conn *netlink.Conn, mappings []Mapping) (map[portKey][]listener, error) {
	found := make(map[portKey][]listener)
	ports := make(map[Protocol]uint16) // 0 means several
	for _, m := range mappings {
		if port, ok := ports[m.Protocol]; ok && port != m.HostPort {
			ports[m.Protocol] = 0
		} else {
			ports[m.Protocol] = m.HostPort
		}
	}
	for p, port := range ports {
		for _, f := range families() {
			sockets, err := listSockets(conn, f.nfproto, p, port)
			if lacksDiag(err) && p == SCTP {
				continue // the kernel has no SCTP sockets, or none are loaded
			}
			if lacksDiag(err) {
				return nil, fmt.Errorf("%w: %s: %w", errNoSockDiag, p, err)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			for _, l := range sockets {
				found[l.port] = append(found[l.port], l)
			}
		}
	}
	return found, nil
}

func lacksDiag(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// listSockets lists the listening sockets of a family, on one port unless port is 0.
func listSockets(conn *netlink.Conn, family byte, p Protocol, port uint16) ([]listener, error) {
	state := uint32(1 << stateListen)
	if p == UDP {
		state = 1 << stateClose
	}
	request := make([]byte, inetDiagReqLen)
	request[0], request[1] = family, p.number()
	binary.NativeEndian.PutUint32(request[4:], state)
	binary.BigEndian.PutUint16(request[8:], port)
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
	if err != nil {
		return nil, err
	}
	var sockets []listener
	for _, r := range replies {
		l, ok, err := readSocket(r.Data, p)
		if err != nil {
			return nil, err
		}
		if ok {
			sockets = append(sockets, l)
		}
	}
	return sockets, nil
}

// readSocket reads a struct inet_diag_msg. It says no to sockets that a mapping
// takes nothing away from.
func readSocket(data []byte, p Protocol) (listener, bool, error) {
	if len(data) < inetDiagMsgLen {
		return listener{}, false, errors.New("the kernel's answer is too short")
	}
	v6only := false
	d, err := netlink.NewAttributeDecoder(data[inetDiagMsgLen:])
	if err != nil {
		return listener{}, false, err
	}
	for d.Next() {
		if d.Type() == inetDiagSKV6Only {
			v6only = d.Uint8() != 0
		}
	}
	if err := d.Err(); err != nil {
		return listener{}, false, err
	}
	addrLen := 4
	if data[0] == unix.AF_INET6 {
		addrLen = 16
	}
	addr, _ := netip.AddrFromSlice(data[8 : 8+addrLen])
	addr = addr.Unmap()
	if addr == netip.IPv6Unspecified() && !v6only {
		addr = netip.Addr{} // both families
	}
	l := listener{
		port:  portKey{p, binary.BigEndian.Uint16(data[4:])},
		addr:  addr,
		uid:   binary.NativeEndian.Uint32(data[64:]),
		inode: binary.NativeEndian.Uint32(data[68:]),
	}
	untouched := addr.IsMulticast() || addr == netip.IPv6Loopback() || l.port.port == 0
	return l, !untouched, nil
}
