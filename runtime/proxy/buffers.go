package proxy

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Buffer sizes in bytes. A list of hundreds of containers has hundreds of
// kilobytes, and the proxy passes a message on when it is complete. Large buffers
// let it read the message in few pieces and write it in one.
const (
	// readBuffer is for the runtime's answers. Each socket has one.
	readBuffer = 512 << 10
	// writeBuffer is for answers to callers. gRPC lends it to a connection while
	// there is something to write.
	writeBuffer = 512 << 10
	// socketBuffer is how much of an answer the kernel takes before the caller
	// reads. The kernel counts its own bookkeeping in it.
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

// widen enlarges the send buffer beyond net.core.wmem_max, which root may do, or
// else up to it (socket(7)). If both fail, answers take a little longer.
func widen(conn syscall.Conn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // it is closed; the next read reports that
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer)
		}
	})
}
