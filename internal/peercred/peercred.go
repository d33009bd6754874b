// Package peercred asks the kernel who is at the other end of a unix socket.
package peercred

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Of returns the credentials of a unix connection's other end (SO_PEERCRED,
// unix(7)). At the end that accepted the connection they are those of the
// process that connected; at the end that connected, those of the process that
// called listen(2), which for a socket of systemd is pid 1 whatever service
// accepts. The pid is 0 if the process is in another pid namespace and cannot
// be seen from here.
func Of(conn net.Conn) (*unix.Ucred, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%T is not a unix connection", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return nil, err
	}
	return cred, credErr
}
