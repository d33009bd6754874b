package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Addresses lists the addresses of the namespace, each once. Left out are ::1 and
// IPv6 link-local ones, of which each pod's veth has one.
func (k *Kernel) Addresses() (found []netip.Addr, err error) {
	err = withRtnl(k.netns, func(r *rtnl) error {
		all, err := r.addresses(0)
		for _, a := range all {
			skip := a.addr == netip.IPv6Loopback() || a.addr.Is6() && a.addr.IsLinkLocalUnicast()
			if !skip && !slices.Contains(found, a.addr) {
				found = append(found, a.addr)
			}
		}
		return err
	})
	return found, err
}

// AddressesOn lists the addresses of the named interfaces, each once. Interfaces
// that do not exist have none.
func (k *Kernel) AddressesOn(names []string) (found []netip.Addr, err error) {
	err = withRtnl(k.netns, func(r *rtnl) error {
		for _, name := range names {
			l, err := r.linkByName(name)
			if errors.Is(err, unix.ENODEV) {
				continue
			}
			if err != nil {
				return err
			}
			all, err := r.addresses(l.Index)
			if err != nil {
				return err
			}
			for _, a := range all {
				if !slices.Contains(found, a.addr) {
					found = append(found, a.addr)
				}
			}
		}
		return nil
	})
	return found, err
}

// KindOf returns the kind of the interface that has the address, in the namespace
// of a file descriptor; empty for hardware, and if there is none.
func KindOf(netns int, addr netip.Addr) (kind string, err error) {
	err = withRtnl(netns, func(r *rtnl) error {
		all, err := r.addresses(0)
		if err != nil {
			return err
		}
		for _, a := range all {
			if a.addr != addr {
				continue
			}
			l, err := r.linkByIndex(a.index)
			kind = l.Kind
			return err
		}
		return nil
	})
	return kind, err
}

// ifAddr is an address of an interface.
type ifAddr struct {
	index int
	addr  netip.Addr
}

// addresses lists the addresses of an interface, or of all with index 0.
func (r *rtnl) addresses(index int) ([]ifAddr, error) {
	// With strict checking (Linux 4.20) the kernel lists those of one interface;
	// without, all.
	if index != 0 {
		if err := r.conn.SetOption(netlink.GetStrictCheck, true); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
	}
	request, err := rtnlMessage(unix.RTM_GETADDR, 0, addrInfo(index), netlink.NewAttributeEncoder())
	if err != nil {
		return nil, err
	}
	messages, err := collect(r.conn, request, unix.SizeofIfAddrmsg)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	found := make([]ifAddr, 0, len(messages))
	for _, data := range messages {
		a, err := readAddr(data)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if a.addr.IsValid() && (index == 0 || a.index == index) {
			found = append(found, a)
		}
	}
	return found, nil
}

// addrInfo is a struct ifaddrmsg.
func addrInfo(index int) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	return b
}

func readAddr(data []byte) (ifAddr, error) {
	a := ifAddr{index: int(binary.NativeEndian.Uint32(data[4:]))}
	d, err := netlink.NewAttributeDecoder(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return a, err
	}
	for d.Next() {
		// On point-to-point links IFA_ADDRESS is the other end's.
		if d.Type() == unix.IFA_LOCAL || d.Type() == unix.IFA_ADDRESS && !a.addr.IsValid() {
			a.addr, _ = netip.AddrFromSlice(d.Bytes())
		}
	}
	return a, d.Err()
}
