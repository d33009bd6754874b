package integration_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/runtime/admin"
)

const (
	dhcpNetwork = `{"cniVersion": "1.0.0", "name": "lan", "plugins": [{"type": "bridge", "bridge": "lan0", "ipam": {"type": "dhcp"}}]}`
	dhcpPrefix  = "10.57.0."
	// dhcpLease is the length of a lease. It is renewed after half of it. A lease
	// that ends earlier than half of it after the last renewal was given back.
	dhcpLease = 8 * time.Second
)

// releaseFix sets the source address of DHCPRELEASE in the server's namespace. The
// reference plugin v1.9.1 sends it from 0.0.0.0 (containernetworking/plugins
// #1278), and Linux drops such packets before a server's socket gets them. The rule
// matches option 53, which follows 8 bytes of UDP and 240 of the fixed part.
const releaseFix = `nft -f - <<END
table netdev fix {
	chain in {
		type filter hook ingress device "lan" priority 0
		ip saddr 0.0.0.0 udp dport 67 @th,1984,24 0x350107 ip saddr set 10.57.0.3
	}
}
END`

// startDHCP makes the bridge lan0 with a DHCP server on it, in a network
// namespace of the server's own, which nothing but the server keeps alive.
func (n *testNode) startDHCP() {
	n.t.Helper()
	n.ok(n.WriteFile("/run/udhcpd.conf", fmt.Sprintf(`interface lan
start 10.57.0.20
end 10.57.0.99
option subnet 255.255.255.0
option router 10.57.0.1
option lease %d
min_lease 1
auto_time 1
lease_file /run/udhcpd.leases
`, dhcpLease/time.Second)))
	n.sh(`: >/run/udhcpd.leases; ip link add lan0 type bridge; ip link set lan0 up
		ip addr add 10.57.0.2/24 dev lan0`)
	log, err := os.Create(n.Path("/run/udhcpd.log"))
	n.ok(err)
	ctx, cancel := context.WithCancel(context.Background())
	server := n.Command(ctx, "unshare", "--net", "sh", "-ec", `echo $$ >/run/udhcpd.pid
		until ip link show lan >/dev/null 2>&1; do sleep 0.02; done
		ip addr add 10.57.0.1/24 dev lan; ip link set lan up
		`+releaseFix+`
		exec busybox udhcpd -f -a 0 /run/udhcpd.conf`)
	server.Stdout, server.Stderr = log, log
	n.ok(n.Start(server))
	n.t.Cleanup(func() {
		cancel()
		_ = server.Wait() // it was killed
		if n.t.Failed() {
			text, err := os.ReadFile(log.Name())
			n.t.Logf("the DHCP server said: %s %v", text, err)
		}
		_ = log.Close() // only written to by the server
	})
	n.sh(`until [ -s /run/udhcpd.pid ]; do sleep 0.02; done
		ip link add lan1 type veth peer name lan netns $(cat /run/udhcpd.pid)
		ip link set lan1 master lan0 up`)
}

// acks is how often the server has given out or renewed an address.
func (n *testNode) acks(addr string) int {
	n.t.Helper()
	text, err := os.ReadFile(n.Path("/run/udhcpd.log"))
	n.ok(err)
	return strings.Count(string(text), "sending ACK to "+addr+"\n")
}

// awaitAcks waits until the server gives out an address once more, from now on.
func (n *testNode) awaitAcks(what, addr string) {
	n.t.Helper()
	before := n.acks(addr)
	for deadline := time.Now().Add(3 * dhcpLease); n.acks(addr) == before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: the lease of %s was not renewed", what, addr)
		}
	}
}

// leases lists the server's leases. The server writes its file in place, and half
// of it cannot be read.
func (n *testNode) leases() (text string) {
	n.t.Helper()
	n.awaitOK(answerTimeout, func() (err error) {
		text, err = n.Run(n.ctx, "busybox", "dumpleases", "-r", "-f", "/run/udhcpd.leases")
		return err
	})
	return text
}

// leased says whether the server holds a lease of an address.
func (n *testNode) leased(addr string) bool {
	n.t.Helper()
	for line := range strings.Lines(n.leases()) {
		if slices.Contains(strings.Fields(line), addr) {
			return !strings.Contains(line, "expired")
		}
	}
	return false
}

// awaitDHCP waits until the dhcp daemon is as it should be.
func (n *testNode) awaitDHCP(what string, ok func(admin.DHCPDaemon) bool) admin.DHCPDaemon {
	n.t.Helper()
	var found admin.DHCPDaemon
	n.awaitStatus(what, cleanTimeout, func(s admin.Status) bool {
		found = admin.DHCPDaemon{}
		if len(s.DHCPDaemons) > 0 {
			found = s.DHCPDaemons[0]
		}
		return ok(found)
	})
	return found
}

// dhcpRuns says whether a process of the node is there.
func (n *testNode) dhcpRuns(pid int) bool {
	_, err := os.Stat(n.Path(fmt.Sprintf("/proc/%d", pid)))
	return err == nil
}

// A network with IPAM of type dhcp has its daemon: crinetd starts it, restarts
// it with the leases of the pods that run, takes it over after its own restart,
// and ends it when no pod needs it any more.
func TestDHCP(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startDHCP()
	n.ok(n.WriteConf("10-lan.conflist", dhcpNetwork))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	daemon := n.awaitDHCP("started", func(d admin.DHCPDaemon) bool { return d.PID != 0 })
	if daemon.Socket != "/run/cni/dhcp.sock" || !daemon.Own || daemon.Starts != 1 {
		t.Errorf("the daemon is %+v", daemon)
	}

	first := n.runPod(client, "first")
	addr := n.address(first)
	if !strings.HasPrefix(addr, dhcpPrefix) {
		t.Errorf("the pod's address is %s, want one of the DHCP server's", addr)
	}
	n.reachable(first)
	n.awaitAcks("in use", addr)

	n.sh("kill -KILL %d", daemon.PID)
	restarted := n.awaitDHCP("restarted", func(d admin.DHCPDaemon) bool { return d.PID != 0 && d.PID != daemon.PID })
	n.awaitNetwork(client, true)
	n.awaitAcks("taken up again by the next daemon", addr)
	n.awaitAcks("renewed by the next daemon", addr)

	n.ok(n.StopCrinetd())
	n.awaitAcks("while crinetd is away", addr)
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	taken := n.awaitDHCP("taken over", func(d admin.DHCPDaemon) bool { return d.PID != 0 })
	if taken.PID != restarted.PID || !taken.Own || taken.Starts != 0 {
		t.Errorf("after a restart of crinetd the daemon is %+v, want process %d taken over", taken, restarted.PID)
	}
	n.awaitNetwork(client, true)
	second := n.runPod(client, "second")
	other := n.address(second)
	n.awaitLease(other, true)
	n.ok(second.StopAndRemove(n.ctx))
	n.awaitLease(other, false)

	// Another network is selected: the daemon stays as long as a pod needs it.
	n.ok(n.replaceConf("05-other.conflist", bridged("other", "10.58.0.0/16")))
	n.awaitLive("another network", "other", cleanTimeout)
	n.awaitAcks("on a network that is not selected any more", addr)
	if !n.dhcpRuns(taken.PID) {
		t.Error("the daemon was ended while a pod had a lease")
	}
	n.ok(first.StopAndRemove(n.ctx))
	n.awaitLease(addr, false)
	n.awaitDHCP("ended", func(d admin.DHCPDaemon) bool { return d.Socket == "" })
	if n.dhcpRuns(taken.PID) {
		t.Error("the daemon was not ended when nobody needed it any more")
	}
	n.cleanBut("veth lan1")
}

// awaitLease waits until the server holds a lease of an address, or has been
// given it back.
func (n *testNode) awaitLease(addr string, held bool) {
	n.t.Helper()
	for deadline := time.Now().Add(dhcpLease/2 - 500*time.Millisecond); n.leased(addr) != held; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("a lease of %s is held: %t, want %t\n%s", addr, !held, held, n.leases())
		}
	}
}

// cleanBut is noLeftovers for a node on which known things stay.
func (n *testNode) cleanBut(known ...string) {
	n.t.Helper()
	var left []string
	for deadline := time.Now().Add(cleanTimeout); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var err error
		left, err = n.Leftovers(n.ctx)
		n.ok(err)
		left = slices.DeleteFunc(left, func(what string) bool { return slices.Contains(known, what) })
		if len(left) == 0 {
			return
		}
	}
	n.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

// crinetd uses a daemon that somebody else runs at the socket that the network
// names, and leaves it alone. While there is none and crinetd cannot start one, the
// network is not ready.
func TestForeignDHCPDaemon(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startDHCP()
	n.ok(n.WriteConf("10-lan.conflist", strings.ReplaceAll(dhcpNetwork, `"dhcp"`, `"dhcp", "daemonSocketPath": "/run/site/dhcp.sock"`)))
	n.ok(n.StartContainerd(n.ctx))
	// A file in the way keeps crinetd from starting its own.
	n.ok(n.WriteFile("/run/site/dhcp.sock", "in the way"))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	if message := n.awaitNetwork(client, false); !strings.Contains(message, "/run/site/dhcp.sock") {
		t.Errorf("NetworkReady says %q, want it to name the daemon's socket", message)
	}
	n.ok(n.StopCrinetd())
	n.sh("rm /run/site/dhcp.sock")
	ctx, cancel := context.WithCancel(context.Background())
	foreign := n.Command(ctx, node.BinDir+"/dhcp", "daemon", "-socketpath", "/run/site/dhcp.sock")
	n.ok(n.Start(foreign))
	defer func() {
		cancel()
		_ = foreign.Wait() // it was killed
	}()
	n.sh("until [ -S /run/site/dhcp.sock ]; do sleep 0.02; done")
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	daemon := n.awaitDHCP("one that runs", func(d admin.DHCPDaemon) bool { return d.PID != 0 })
	if daemon.Own || daemon.Starts > 0 {
		t.Errorf("%+v, want somebody else's", daemon)
	}
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "pod")
	if addr := n.address(pod); !strings.HasPrefix(addr, dhcpPrefix) {
		t.Errorf("the pod's address is %s", addr)
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.sh("rm %s/10-lan.conflist", node.ConfDir)
	n.awaitDHCP("not needed", func(d admin.DHCPDaemon) bool { return d.Socket == "" })
	if !n.dhcpRuns(daemon.PID) {
		t.Error("a daemon of somebody else's was ended")
	}
	n.cleanBut("veth lan1", "plugin "+node.BinDir+"/dhcp")
}
