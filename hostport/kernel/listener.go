package kernel

import (
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

// ErrNoListeners says that the kernel does not list the sockets of a protocol: it
// does not have the protocol, or not the module that lists it.
var ErrNoListeners = errors.New("the kernel cannot list sockets of the protocol")

// Listener is a socket that takes what arrives at a port.
type Listener struct {
	Port uint16
	// Addr is where it listens. The zero Addr is every address of both families.
	Addr netip.Addr
	// Inode identifies the socket in /proc; 0 is a socket of the kernel's own.
	Inode uint32
	UID   uint32
}

// Listeners lists the listening sockets of a family and protocol, those on one
// port unless port is 0. The error wraps ErrNoListeners if they cannot be listed.
func (k *Kernel) Listeners(family, protocol byte, port uint16) (found []Listener, err error) {
	state := uint32(1 << stateListen)
	if protocol == unix.IPPROTO_UDP {
		state = 1 << stateClose
	}
	body := make([]byte, inetDiagReqLen)
	body[0], body[1] = family, protocol
	binary.NativeEndian.PutUint32(body[4:], state)
	binary.BigEndian.PutUint16(body[8:], port)
	conn, err := dial(unix.NETLINK_SOCK_DIAG, k.netns)
	if err != nil {
		return nil, noListeners(err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	messages, err := collect(conn, netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily}, Data: body,
	}, inetDiagMsgLen)
	if err != nil {
		return nil, noListeners(err)
	}
	found = make([]Listener, 0, len(messages))
	for _, data := range messages {
		l, err := readListener(data)
		if err != nil {
			return nil, err
		}
		found = append(found, l)
	}
	return found, nil
}

func noListeners(err error) error {
	for _, e := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EINVAL, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNoListeners, err)
		}
	}
	return err
}

// readListener reads a struct inet_diag_msg.
func readListener(data []byte) (Listener, error) {
	v6only := false
	d, err := netlink.NewAttributeDecoder(data[inetDiagMsgLen:])
	if err != nil {
		return Listener{}, err
	}
	for d.Next() {
		if d.Type() == inetDiagSKV6Only {
			v6only = d.Uint8() != 0
		}
	}
	if err := d.Err(); err != nil {
		return Listener{}, err
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
	return Listener{
		Port:  binary.BigEndian.Uint16(data[4:]),
		Addr:  addr,
		UID:   binary.NativeEndian.Uint32(data[64:]),
		Inode: binary.NativeEndian.Uint32(data[68:]),
	}, nil
}
