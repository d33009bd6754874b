package proxy

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A connection takes an answer of hundreds of kilobytes before its reader reads.
func TestWideListenerTakesALargeAnswer(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CRINET_TEST_REQUIRE_ALL") != "" {
			t.Fatal("needs root: others cannot go beyond net.core.wmem_max")
		}
		t.Skip("needs root: others cannot go beyond net.core.wmem_max")
	}
	path := filepath.Join(sockets(t), "s")
	plain, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := wideListener{plain}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var size int
	var sizeErr error
	if err := raw.Control(func(fd uintptr) {
		size, sizeErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
	}); err != nil || sizeErr != nil {
		t.Fatal(err, sizeErr)
	}
	if size < socketBuffer {
		t.Errorf("the connection's send buffer has %d bytes, want at least %d", size, socketBuffer)
	}
}
