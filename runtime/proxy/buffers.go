package proxy

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// A list of hundreds of containers has hundreds of kilobytes, and a message is
// passed on when it is complete: what counts is that it is read in few pieces
// and handed to the kernel in one. Sizes in bytes.
const (
	// readBuffer is for the runtime's answers, once a socket.
	readBuffer = 512 << 10
	// writeBuffer is for answers to callers. gRPC lends it to a connection while
	// there is something to write.
	writeBuffer = 512 << 10
	// socketBuffer is what the kernel takes of an answer before the caller
	// reads, bookkeeping included.
	socketBuffer = 1 << 20
)

// wideListener gives connections a larger send buffer.
type wideListener struct{ net.Listener }

// Accept implements net.Listener.
func (l wideListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if c, ok := conn.(syscall.Conn); ok {
		widen(c)
	}
	return conn, nil
}

// widen asks for more than net.core.wmem_max allows, which root may, or else for
// what it allows (socket(7)). Without either, answers take a little longer.
func widen(conn syscall.Conn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // closed already, which the next read reports
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
		}
	})
}
