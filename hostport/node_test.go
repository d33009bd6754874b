package hostport

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// testNode is a node with an uplink, at which a client of the outside is, and pods.
type testNode struct {
	node, client netns
	// bridge is the pods' bridge, "" if each is at the end of a veth of its own.
	bridge string
}

const (
	nodeIP4, nodeIP6     = "198.51.100.1", "2001:db8:1::1"
	clientIP4, clientIP6 = "198.51.100.2", "2001:db8:1::2"
	gwIP4, gwIP6         = "10.1.0.1", "fd00:1::1"
)

func newTestNode(t testing.TB, bridge string) *testNode {
	t.Helper()
	needRoot(t, "ip", "nft")
	n := &testNode{node: newNetNS(t), client: newNetNS(t), bridge: bridge}
	veth(t, n.node, "uplink", n.client, "eth0")
	n.node.address(t, "uplink", nodeIP4+"/24", nodeIP6+"/64")
	n.client.address(t, "eth0", clientIP4+"/24", clientIP6+"/64")
	n.client.run(t, "ip", "route", "add", "default", "via", nodeIP4)
	n.client.run(t, "ip", "route", "add", "default", "via", nodeIP6)
	n.node.sysctl(t, "net/ipv4/ip_forward", "1")
	n.node.sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	if bridge != "" {
		n.node.run(t, "ip", "link", "add", bridge, "type", "bridge")
		n.node.run(t, "ip", "link", "set", bridge, "up")
		n.node.address(t, bridge, gwIP4+"/24", gwIP6+"/64")
	}
	return n
}

func (n *testNode) bridgeNetfilter(t testing.TB, value string) {
	t.Helper()
	n.node.sysctl(t, "net/bridge/bridge-nf-call-iptables", value)
	n.node.sysctl(t, "net/bridge/bridge-nf-call-ip6tables", value)
}

// testPodNS is a pod's namespace and addresses.
type testPodNS struct {
	netns
	name     string
	ip4, ip6 string
}

// addPod makes a pod with the addresses 10.1.0.NUMBER and fd00:1::NUMBER.
func (n *testNode) addPod(t testing.TB, name string, number int) testPodNS {
	t.Helper()
	p := testPodNS{newNetNS(t), name, fmt.Sprintf("10.1.0.%d", number), fmt.Sprintf("fd00:1::%d", number)}
	port := "veth" + name
	veth(t, n.node, port, p.netns, "eth0")
	if n.bridge != "" {
		n.node.run(t, "ip", "link", "set", port, "master", n.bridge)
		p.address(t, "eth0", p.ip4+"/24", p.ip6+"/64")
	} else {
		p.address(t, "eth0", p.ip4+"/32", p.ip6+"/128")
		n.node.address(t, port, gwIP4+"/32", gwIP6+"/128")
		n.node.run(t, "ip", "route", "add", p.ip4, "dev", port)
		n.node.run(t, "ip", "route", "add", p.ip6, "dev", port)
		p.run(t, "ip", "route", "add", gwIP4, "dev", "eth0")
		p.run(t, "ip", "route", "add", gwIP6, "dev", "eth0")
	}
	p.run(t, "ip", "route", "add", "default", "via", gwIP4)
	p.run(t, "ip", "route", "add", "default", "via", gwIP6)
	return p
}

// pod is what the Manager is told about it.
func (p testPodNS) pod(t testing.TB, mappings ...string) Pod {
	t.Helper()
	return testPod(t, p.name, []string{p.ip4, p.ip6}, mappings...)
}

// serve answers whoever connects or sends something with "NAME ADDRESS", where the
// address is the peer's as the server sees it.
func (ns netns) serve(t testing.TB, name, network, address string) {
	t.Helper()
	switch {
	case strings.HasPrefix(network, "tcp"):
		var l net.Listener
		ns.mustDo(t, func() (err error) {
			l, err = net.Listen(network, address)
			return err
		})
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go answer(c, name)
			}
		}()
	default:
		var l net.PacketConn
		ns.mustDo(t, func() (err error) {
			l, err = net.ListenPacket(network, address)
			return err
		})
		t.Cleanup(func() { l.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				n, from, err := l.ReadFrom(buf)
				if err != nil {
					return
				}
				if _, err := l.WriteTo([]byte(name+" "+hostOf(from.String())+"\n"+string(buf[:n])), from); err != nil {
					return
				}
			}
		}()
	}
}

// answer greets and then sends back what comes.
func answer(c net.Conn, name string) {
	defer c.Close()
	if _, err := io.WriteString(c, name+" "+hostOf(c.RemoteAddr().String())+"\n"); err != nil {
		return
	}
	if _, err := io.Copy(c, c); err != nil {
		return
	}
}

func hostOf(address string) string { return netip.MustParseAddrPort(address).Addr().Unmap().String() }

const patience = time.Second

// call connects from the namespace and returns what the server says.
func (ns netns) call(network, address string) (string, error) {
	var conn net.Conn
	err := ns.do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if strings.HasPrefix(network, "udp") {
		return ask(conn)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	return readLine(conn)
}

// ask sends a datagram and reads the answer to it. Answers to earlier ones, which
// may come late, are passed over.
func ask(conn net.Conn) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	question := rand.Text()
	if _, err := io.WriteString(conn, question); err != nil {
		return "", err
	}
	for buf := make([]byte, 100); ; {
		n, err := conn.Read(buf)
		if err != nil {
			return "", err
		}
		if answer, ok := strings.CutSuffix(string(buf[:n]), "\n"+question); ok {
			return answer, nil
		}
	}
}

func readLine(r io.Reader) (string, error) {
	var line []byte
	buf := make([]byte, 1)
	for {
		if _, err := r.Read(buf); err != nil {
			return string(line), err
		}
		if buf[0] == '\n' {
			return string(line), nil
		}
		line = append(line, buf[0])
	}
}

// answerTries is how often a call is made that should be answered: on a loaded
// machine one may take longer than patience.
const answerTries = 20

// expect calls until there is an answer, which must be the wanted one; "" wants no
// answer at all.
func (ns netns) expect(t testing.TB, network, address, want string) {
	t.Helper()
	got, err := ns.call(network, address)
	for tries := 1; want != "" && err != nil && tries < answerTries; tries++ {
		got, err = ns.call(network, address)
	}
	switch {
	case want == "" && err == nil:
		t.Errorf("%s %s: got %q, want no answer", network, address, got)
	case want != "" && err != nil:
		t.Errorf("%s %s: %v, want %q", network, address, err, want)
	case got != want:
		t.Errorf("%s %s: got %q, want %q", network, address, got, want)
	}
}

func hostPort(host string, port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
