package nettest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Transports of a probe.
const (
	tcp   = "tcp"
	udp   = "udp"
	icmp  = "icmp"  // echo, of either family
	knock = "knock" // TCP to where perhaps nobody listens: a refusal is an answer
)

const (
	// firstTry is how long the first try of a probe waits for its answer, secondTry
	// the one that is traced.
	firstTry  = 500 * time.Millisecond
	secondTry = 900 * time.Millisecond
)

// probe is one packet on its way, and its answer.
type probe struct {
	transport string
	from      *Space
	fromName  string     // pod 1, the node
	source    netip.Addr // that the packet is expected to have
	to        netip.AddrPort
	toName    string
	behind    uint16 // the port that to's is translated to; 0 if it is not
	token     string // for the server
	want      string // the name that answers; empty takes any
	size      int    // of the IP packet in bytes; 0 sends a small one
	forwarded bool   // the node forwards it
	outward   bool   // it leaves the node
	by        string // how else it is known: hairpin, hostPort
}

// String says what is sent from where to where.
func (p *probe) String() string {
	what := map[string]string{tcp: "TCP", udp: "UDP", icmp: "ICMP echo", knock: "TCP"}[p.transport]
	if p.size > 0 {
		what += fmt.Sprintf(" of %d bytes that must not be fragmented", p.size)
	}
	from := p.fromName
	if p.source.IsValid() {
		from += " (" + p.source.String() + ")"
	}
	to := p.to.String()
	if p.transport == icmp {
		to = p.to.Addr().String()
	}
	return fmt.Sprintf("%s from %s to %s (%s)", what, from, p.toName, to)
}

// short names the probe among others of its step.
func (p *probe) short() string {
	family := "IPv4"
	if p.to.Addr().Is6() {
		family = "IPv6"
	}
	return fmt.Sprintf("%s over %s from %s to %s", strings.ToUpper(p.transport), family, p.fromName, p.to)
}

// send sends the probe and waits for its answer.
func (p *probe) send(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if p.transport == icmp {
		return p.echo(ctx)
	}
	var conn net.Conn
	err := p.from.Do(func() (err error) {
		dialer := net.Dialer{}
		transport := p.transport
		if transport == knock {
			transport = tcp
		}
		if p.size > 0 {
			dialer.Control = dontFragment
		}
		conn, err = dialer.DialContext(ctx, network(transport, p.to.Addr()), p.to.String())
		return err
	})
	if p.transport == knock && (err == nil || errors.Is(err, syscall.ECONNREFUSED)) {
		if conn != nil {
			_ = conn.Close() // it has answered
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // what it had to say is read
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	return p.exchange(conn)
}

// exchange sends over a connection and reads who answers.
func (p *probe) exchange(conn net.Conn) error {
	payload := []byte(p.token)
	if p.size > 0 {
		padded := make([]byte, p.size-p.headers())
		copy(padded, payload)
		payload = padded
	}
	if _, err := conn.Write(payload); err != nil {
		return err
	}
	said, err := bufio.NewReaderSize(conn, maxDatagram).ReadString('\n')
	if err != nil {
		return err
	}
	if name := strings.TrimSuffix(said, "\n"); p.want != "" && name != p.want {
		return &strangerError{name: name, want: p.want}
	}
	return nil
}

// headers is the size of the probe's IP and transport headers.
func (p *probe) headers() int {
	const transport = 8 // of UDP and of ICMP echo
	if p.to.Addr().Is6() {
		return 40 + transport
	}
	return 20 + transport
}

// strangerError says that another answers than should.
type strangerError struct{ name, want string }

func (e *strangerError) Error() string {
	return fmt.Sprintf("another answers: %.40q in the place of %s", e.name, e.want)
}

// came says what came back in the place of an answer.
func came(err error, patience time.Duration) string {
	var stranger *strangerError
	switch {
	case errors.As(err, &stranger):
		return stranger.Error()
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused: a TCP reset or ICMP port unreachable"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "host unreachable: ICMP says so, or nobody answers for the address on the sender's link"
	case errors.Is(err, syscall.ENETUNREACH):
		return "network unreachable: the sender has no route, or ICMP says so"
	case errors.Is(err, syscall.EMSGSIZE):
		return "message too long: a smaller MTU is on the way"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "forbidden: a rule on the sender's own way out, or ICMP says so"
	case errors.Is(err, syscall.EINVAL):
		return "the kernel would not send it (invalid argument)"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset: the connection was made and then broken"
	case isTimeout(err):
		return fmt.Sprintf("nothing within %s", patience)
	default:
		return Plain(err.Error())
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// sendAll sends probes at once and returns their errors, in their order.
func sendAll(ctx context.Context, probes []*probe, patience time.Duration) []error {
	errs := make([]error, len(probes))
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() { errs[i] = p.send(ctx, patience) })
	}
	all.Wait()
	return errs
}
