package integration_test

import (
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// notifySocket is where the test hears what crinetd tells its service manager.
const notifySocket = "/run/notify.sock"

// TestServiceManager listens to crinetd as a service manager does: it says when it
// serves, how it is, that it lives, also while containerd is silent, and that it ends.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.ok(os.MkdirAll(n.Path("/run"), 0o755))
	conn := n.listenPackets(notifySocket)
	defer conn.Close()
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.HoldSockets())
	n.ok(n.StartCrinetdBy(n.ctx, []string{"env", "NOTIFY_SOCKET=" + notifySocket, "WATCHDOG_USEC=6000000"}, cniFlags...))
	n.awaitNetwork(n.client(node.CrinetdSocket), true)
	n.awaitState(conn, "READY=1")
	n.awaitState(conn, "STATUS=network ready")
	n.ok(n.SignalContainerd(syscall.SIGSTOP))
	for range 3 {
		n.awaitState(conn, "WATCHDOG=1")
	}
	n.ok(n.SignalContainerd(syscall.SIGCONT))
	n.ok(n.StopCrinetd())
	n.awaitState(conn, "STOPPING=1")
}

// listenPackets listens on a datagram socket of the node.
func (n *testNode) listenPackets(path string) *net.UnixConn {
	n.t.Helper()
	var conn *net.UnixConn
	n.ok(n.Do(func() (err error) {
		conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		return err
	}))
	return conn
}

// awaitState reads what crinetd says until it says what begins with want.
func (n *testNode) awaitState(conn *net.UnixConn, want string) {
	n.t.Helper()
	n.ok(conn.SetReadDeadline(time.Now().Add(cleanTimeout)))
	buffer := make([]byte, 4096)
	var said []string
	for {
		size, err := conn.Read(buffer)
		if err != nil {
			n.t.Fatalf("crinetd did not say %q, but %q: %v", want, said, err)
		}
		said = append(said, string(buffer[:size]))
		if strings.HasPrefix(string(buffer[:size]), want) {
			return
		}
	}
}
