package nettest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
)

// Types of ICMP (RFC 792, RFC 4443).
const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
	echoHeader               = 8
)

// echo sends an ICMP echo request, and waits for its reply.
func (p *probe) echo(ctx context.Context) error {
	v6 := p.to.Addr().Is6()
	proto, request, reply := "ip4:icmp", byte(echoRequest4), byte(echoReply4)
	if v6 {
		proto, request, reply = "ip6:ipv6-icmp", echoRequest6, echoReply6
	}
	var conn net.Conn
	err := p.from.Do(func() (err error) {
		dialer := net.Dialer{Control: dontFragment}
		conn, err = dialer.DialContext(ctx, proto, p.to.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // the reply is read
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	packet := make([]byte, max(p.size-p.headers()+echoHeader, 64))
	packet[0] = request
	_, _ = rand.Read(packet[4 : echoHeader+8]) // crypto/rand never fails
	if !v6 {
		binary.BigEndian.PutUint16(packet[2:], checksum(packet))
	}
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	buffer := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return err
		}
		got := buffer[:n]
		if !v6 && n > 0 && got[0]>>4 == 4 { // with its IP header
			got = got[min(n, int(got[0]&15)*4):]
		}
		if len(got) == len(packet) && got[0] == reply && bytes.Equal(got[4:], packet[4:]) {
			return nil
		}
	}
}

// checksum is that of the internet (RFC 1071).
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		sum += uint32(data[len(data)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
