package nettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxDatagram is more than any interface's MTU.
const maxDatagram = 1 << 16

// servers answer in namespaces, each with the name of its end: over TCP to a line,
// over UDP with a datagram of the same size that must not be fragmented. Only those
// who know the token get an answer: for a moment the servers can be reached from outside.
type servers struct {
	token   string
	mu      sync.Mutex
	closers []func() error
	faults  map[string]error // name -> why its last answer over UDP was not sent
}

// close ends all servers.
func (s *servers) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.closers {
		_ = c() // nobody waits for an answer any more
	}
	s.closers = nil
}

// fault is why the last answer of a name could not be sent.
func (s *servers) fault(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults[name]
}

// listen serves TCP and UDP on an address in a namespace; port 0 takes any that is
// free. It returns the address.
func (s *servers) listen(ctx context.Context, space *Space, name string, at netip.AddrPort) (tcp, udp netip.AddrPort, err error) {
	err = space.Do(func() error {
		config := net.ListenConfig{Control: dontFragment}
		l, err := config.Listen(ctx, network("tcp", at.Addr()), at.String())
		if err != nil {
			return fmt.Errorf("listen on TCP in %s: %w", name, err)
		}
		p, err := config.ListenPacket(ctx, network("udp", at.Addr()), at.String())
		if err != nil {
			return errors.Join(fmt.Errorf("listen on UDP in %s: %w", name, err), l.Close())
		}
		s.mu.Lock()
		s.closers = append(s.closers, l.Close, p.Close)
		s.mu.Unlock()
		tcp, udp = addrPort(l.Addr()), addrPort(p.LocalAddr())
		go s.serveTCP(l, name)
		go s.serveUDP(p, name)
		return nil
	})
	return tcp, udp, err
}

func (s *servers) serveTCP(l net.Listener, name string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // it is closed
		}
		go func() {
			defer func() { _ = conn.Close() }() // the client has its answer, or is gone
			_ = conn.SetDeadline(time.Now().Add(secondTry))
			said := make([]byte, len(s.token))
			if _, err := io.ReadFull(conn, said); err == nil && string(said) == s.token {
				_, _ = conn.Write([]byte(name + "\n")) // the client tells if it does not come
			}
		}()
	}
}

func (s *servers) serveUDP(p net.PacketConn, name string) {
	buffer := make([]byte, maxDatagram)
	for {
		n, from, err := p.ReadFrom(buffer)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // the error of an earlier answer
		}
		if !bytes.HasPrefix(buffer[:n], []byte(s.token)) {
			continue
		}
		answer := make([]byte, max(n, len(name)+1))
		copy(answer, name+"\n")
		_, err = p.WriteTo(answer, from)
		s.mu.Lock()
		if s.faults == nil {
			s.faults = make(map[string]error)
		}
		s.faults[name] = err
		s.mu.Unlock()
	}
}

// dontFragment sets the bit of that name on what a socket sends.
func dontFragment(network, _ string, c syscall.RawConn) error {
	var err error
	controlErr := c.Control(func(fd uintptr) {
		if network[len(network)-1] == '6' || network == "ip6:ipv6-icmp" {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	return errors.Join(controlErr, err)
}

// network is Go's name of a transport over the family of an address.
func network(transport string, addr netip.Addr) string {
	if addr.Is4() {
		return transport + "4"
	}
	return transport + "6"
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return ap
}
