package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Family is an IP family: what differs between IPv4 and IPv6.
type Family struct {
	// Number is AF_INET or AF_INET6, which are NFPROTO_IPV4 and NFPROTO_IPV6 too.
	Number   byte
	Any      netip.Addr
	Loopback netip.Prefix
	// Multicast are the addresses of groups (RFC 5771, RFC 4291).
	Multicast netip.Prefix
}

// IPv4 returns the family IPv4.
func IPv4() Family {
	return Family{
		unix.AF_INET, netip.IPv4Unspecified(),
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/4"),
	}
}

// IPv6 returns the family IPv6.
func IPv6() Family {
	return Family{
		unix.AF_INET6, netip.IPv6Unspecified(),
		netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8"),
	}
}

// Has reports whether the address is of the family. The zero Addr is of none.
func (f Family) Has(addr netip.Addr) bool { return addr.IsValid() && addr.Is4() == f.Any.Is4() }

// AddrLen is the length of an address in bytes.
func (f Family) AddrLen() int { return f.Any.BitLen() / 8 }
