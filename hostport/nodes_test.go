package hostport

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// TestServiceAddressesAreNotTranslated keeps the addresses of Services on
// kube-ipvs0, as kube-proxy in IPVS mode does, and lets a process answer there in
// IPVS' place. The kernel has no dummy device here; a bridge stands in.
func TestServiceAddressesAreNotTranslated(t *testing.T) {
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	for _, network := range []string{"tcp4", "tcp6"} {
		web.serve(t, "web", network, ":8080")
		n.node.serve(t, "service", network, ":443")
	}
	n.node.run(t, "ip", "link", "add", kubeIPVS, "type", "bridge")
	n.node.address(t, kubeIPVS, "10.96.0.1/32", "fd00:96::1/128")
	m := newManager(t, n.node, func(c *Config) { c.Conflict = Warn })
	mustMap(t, m, web.pod(t, "tcp 443:8080", "tcp 10.96.0.2 444:8080"))
	n.client.expect(t, "tcp4", hostPort("10.96.0.1", 443), "service "+clientIP4)
	n.client.expect(t, "tcp6", hostPort("fd00:96::1", 443), "service "+clientIP6)
	n.node.expect(t, "tcp4", hostPort("10.96.0.1", 443), "service 10.96.0.1")
	n.client.expect(t, "tcp4", hostPort(nodeIP4, 443), "web "+clientIP4)

	// A flow to a Service is nobody's business here, whatever the port.
	n.client.expect(t, "udp4", hostPort("10.96.0.1", 53), "")
	flow := flowsTo(t, n.node, 53)
	mustMap(t, m, testPod(t, "dns", []string{web.ip4}, "udp 53:5353"))
	if diff := cmp.Diff(flow, flowsTo(t, n.node, 53), compareAddr); diff != "" || len(flow) != 1 {
		t.Errorf("flows to a Service: %s", diff)
	}

	run(t, t.Context(), n.node, m)
	listed := func(addr string, want bool) {
		t.Helper()
		eventually(t, 5*time.Second, func() error {
			out, err := n.node.try("", "nft", "list", "table", "inet", tableName)
			if err != nil {
				return err // flushed, and not put right yet
			}
			if strings.Contains(out, "elements = { "+addr) != want && strings.Contains(out, ", "+addr) != want {
				return fmt.Errorf("%s is in the set: %v", addr, !want)
			}
			return nil
		})
	}
	n.node.address(t, kubeIPVS, "10.96.0.7/32")
	listed("10.96.0.7", true)
	n.client.expect(t, "tcp4", hostPort("10.96.0.7", 443), "service "+clientIP4)
	n.node.nft(t, "flush ruleset")
	listed("10.96.0.7", true)
	n.node.run(t, "ip", "addr", "del", "10.96.0.7/32", "dev", kubeIPVS)
	listed("10.96.0.7", false)
}

// TestIPv6Loopback maps ::1, as the conformance test of HostPort does, and connects
// from the node's address.
func TestIPv6Loopback(t *testing.T) {
	n := newTestNode(t, "cni0")
	web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
	web.serve(t, "web", "tcp6", ":8080")
	other.serve(t, "other", "tcp6", ":8080")
	n.node.serve(t, "node", "tcp6", "[::1]:81")
	m := newManager(t, n.node)
	mustMap(t, m, web.pod(t, "tcp ::1 80:8080", "tcp 81:8080"))
	mustMap(t, m, other.pod(t, "tcp "+nodeIP6+" 80:8080"))
	from := func(source, host string, port int, want string) {
		t.Helper()
		dialer := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		var got string
		err := n.node.do(func() error {
			conn, err := dialer.DialContext(t.Context(), "tcp6", hostPort(host, port))
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				return err
			}
			got, err = readLine(conn)
			return err
		})
		if got != want || (want != "") != (err == nil) {
			t.Errorf("from %s to %s port %d: %q, %v, want %q", source, host, port, got, err, want)
		}
	}
	from(nodeIP6, "::1", 80, "web "+nodeIP6)
	from(nodeIP6, nodeIP6, 80, "other "+nodeIP6)
	from(nodeIP6, "::1", 81, "web "+nodeIP6)
	from("::1", "::1", 80, "") // the kernel does not route ::1
	from("::1", "::1", 81, "node ::1")
}

// TestGuardIsWhereRouteLocalnetIs lets packets for 127.0.0.1 in on an interface that
// no pod is behind, as they arrive on the device of a VRF, which the kernel does not
// have here: the guard must not be in their way.
func TestGuardIsWhereRouteLocalnetIs(t *testing.T) {
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	n.node.serve(t, "local", "tcp4", "127.0.0.1:9000")
	m := newManager(t, n.node)
	mustMap(t, m, web.pod(t, "tcp 80:8080"))
	n.node.sysctl(t, "net/ipv4/conf/uplink/route_localnet", "1")
	n.client.run(t, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	n.client.sysctl(t, "net/ipv4/conf/eth0/route_localnet", "1")
	n.client.run(t, "ip", "route", "add", "127.0.0.1", "via", nodeIP4)
	n.client.expect(t, "tcp4", "127.0.0.1:9000", "local "+clientIP4)
}

// TestHairpinIsTheChainsWord asks for chains that decide about hairpin mode, and for
// bridges that are promiscuous.
func TestHairpinIsTheChainsWord(t *testing.T) {
	for conf, want := range map[string]bool{
		`{"plugins":[{"type":"bridge"}]}`:                                       true,
		`{"plugins":[{"type":"bridge","hairpinMode":false}]}`:                   false,
		`{"plugins":[{"type":"bridge","hairpinMode":true}]}`:                    false,
		`{"plugins":[{"type":"bridge","promiscMode":true},{"type":"tuning"}]}`:  false,
		`{"plugins":[{"type":"flannel","delegate":{"hairpinMode":false}}]}`:     false,
		`{"plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}}]}`: true,
		`{"type":"bridge","hairpinMode":false}`:                                 false,
		`{"type":"bridge"}`:                                                     true,
		`not JSON`:                                                              true,
	} {
		if got := HairpinFor([]byte(conf)); got != want {
			t.Errorf("HairpinFor(%s) = %v", conf, got)
		}
	}
	n := newTestNode(t, "cni0")
	one := n.addPod(t, "one", 2)
	n.node.run(t, "ip", "link", "set", "cni0", "promisc", "on")
	if changed, err := SetHairpin(t.Context(), one.path(), "eth0", n.node.fd()); err != nil || changed {
		t.Errorf("a promiscuous bridge: changed %v, %v", changed, err)
	}
	n.node.run(t, "ip", "link", "set", "cni0", "promisc", "off")
	if changed, err := SetHairpin(t.Context(), one.path(), "eth0", n.node.fd()); err != nil || !changed {
		t.Errorf("no promiscuous bridge: changed %v, %v", changed, err)
	}
}

// TestVLANBridge gives the bridge's VLAN a gateway as the bridge plugin does: a veth
// whose other end is a port of the bridge. The kernel cannot filter VLANs here, and
// pods and gateway are on the bridge's default one.
func TestVLANBridge(t *testing.T) {
	for _, netfilter := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+netfilter, func(t *testing.T) {
			n := newTestNode(t, "cni0")
			n.bridgeNetfilter(t, netfilter)
			n.node.run(t, "ip", "addr", "flush", "dev", "cni0")
			n.node.sysctl(t, "net/ipv4/conf/cni0/arp_ignore", "1") // frames of the VLAN do not reach it
			veth(t, n.node, "cni0.100", n.node, "vlanport")
			n.node.run(t, "ip", "link", "set", "vlanport", "master", "cni0")
			n.node.address(t, "cni0.100", gwIP4+"/24", gwIP6+"/64")
			web, other := n.addPod(t, "web", 2), n.addPod(t, "other", 3)
			for _, network := range []string{"tcp4", "tcp6"} {
				web.serve(t, "web", network, ":8080")
			}
			m := newManager(t, n.node)
			mustMap(t, m, web.pod(t, "tcp 80:8080"))
			if got := m.Report().Limited["sandbox-web"]; !strings.Contains(got, "VLAN of cni0") {
				t.Errorf("reported: %q", got)
			}
			n.client.expect(t, "tcp4", hostPort(nodeIP4, 80), "web "+clientIP4)
			n.node.expect(t, "tcp4", "127.0.0.1:80", "web "+gwIP4)
			if netfilter == "1" {
				return // pods of the VLAN do not reach it, as reported
			}
			for _, host := range []string{nodeIP4, nodeIP6} {
				if _, err := other.call("tcp", hostPort(host, 80)); err != nil {
					t.Errorf("from a pod of the VLAN to %s: %v", host, err)
				}
			}
		})
	}
}

// TestMacvlanPodsAreReported maps a pod that the kernel keeps apart from its node.
func TestMacvlanPodsAreReported(t *testing.T) {
	n := newTestNode(t, "cni0")
	web := n.addPod(t, "web", 2)
	lan := newNetNS(t)
	lan.run(t, "ip", "link", "add", "placeholder", "type", "bridge")
	n.node.run(t, "ip", "link", "add", "link", "uplink", "name", "mac0", "type", "macvlan", "mode", "bridge")
	n.node.run(t, "ip", "link", "set", "mac0", "netns", lan.path())
	lan.run(t, "ip", "link", "set", "mac0", "up")
	lan.address(t, "mac0", "198.51.100.9/24")
	var log bytes.Buffer
	m := newManager(t, n.node, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	pod := testPod(t, "lan", []string{"198.51.100.9"}, "tcp 80:8080")
	pod.NetNS = lan.path()
	mustMap(t, m, pod)
	fine := web.pod(t, "tcp 81:8080")
	fine.NetNS = web.path()
	mustMap(t, m, fine)
	silent := m.Report().Limited
	if len(silent) != 1 || !strings.Contains(silent["sandbox-lan"], "macvlan") {
		t.Errorf("reported: %q", silent)
	}
	if got := strings.Count(log.String(), "cannot answer"); got != 1 || !strings.Contains(log.String(), "sandbox-lan") {
		t.Errorf("the log says it %d times: %s", got, &log)
	}
	if err := m.Sync(t.Context(), []Pod{pod}); err != nil || len(m.Report().Limited) != 1 {
		t.Errorf("after Sync: %v, %v", err, m.Report())
	}
	mustUnmap(t, m, pod.SandboxID)
	if got := m.Report().Limited; len(got) != 0 {
		t.Errorf("still reported: %q", got)
	}
}

// lacking is a kernel without connection tracking over netlink and without the
// listing of UDP sockets.
type lacking struct{ host }

func (lacking) CheckFlows() error { return kernel.ErrNoFlows }

func (lacking) DeleteFlows([]kernel.FlowFilter) error { return kernel.ErrNoFlows }

func (lacking) DeleteFlowsIf(kernel.FlowQuery, func(kernel.Flow) (bool, error)) error {
	return kernel.ErrNoFlows
}

func (l lacking) Listeners(family, protocol byte, port uint16) ([]kernel.Listener, error) {
	if protocol == UDP.number() {
		return nil, kernel.ErrNoListeners
	}
	return l.host.Listeners(family, protocol, port)
}

// TestKernelsThatLackParts maps TCP and UDP on such a kernel: what is there works,
// and what is not is reported, and logged once.
func TestKernelsThatLackParts(t *testing.T) {
	ns := nftNetNS(t)
	ns.serve(t, "host", "tcp4", "0.0.0.0:1001")
	var log bytes.Buffer
	m := newManagerFor(t, ns, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	m.host = lacking{m.host}
	if err := m.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	report := m.Report()
	if report.Unavailable != "" || !strings.Contains(report.Flows, "CONFIG_NF_CT_NETLINK") || !strings.Contains(report.Listeners, "udp") {
		t.Errorf("at start: %+v", report)
	}
	for _, name := range []string{"one", "two"} {
		pod := testPod(t, name, []string{"10.1.0.2"}, "udp 80:80", "tcp 81:80")
		reserveAndRelease(t, m, pod, "")
		mustMap(t, m, pod)
		mustUnmap(t, m, pod.SandboxID)
	}
	reserveAndRelease(t, m, unborn(t, "web", "udp 80:80", "tcp 1001:80"), "pid") // TCP is checked
	for _, once := range []string{"cannot be seen", "cannot be ended"} {
		if got := strings.Count(log.String(), once); got != 1 {
			t.Errorf("%q is logged %d times: %s", once, got, &log)
		}
	}
}

// TestRouteLocalnetIsRetried lets switching it off fail, once.
func TestRouteLocalnetIsRetried(t *testing.T) {
	n := newTestNode(t, "cni0")
	one := n.addPod(t, "one", 2)
	m := newManager(t, n.node)
	f := breakHost(m, func(string) bool { return false }, func() bool { return false })
	f.fails = func(call string) bool { return call == "SetRouteLocalnet false" && f.failed[call] == 0 }
	mustMap(t, m, one.pod(t, "tcp 80:80"))
	mustUnmap(t, m, "sandbox-one")
	if got := localnet(t, n.node, "cni0"); got != "1 listed" {
		t.Errorf("after the failure: %s", got)
	}
	select {
	case alarm := <-m.alarms: // Run does not wait for its interval
		if _, err := m.check(t.Context(), alarm); err != nil {
			t.Fatal(err)
		}
	default:
		t.Error("no alarm")
	}
	if got := localnet(t, n.node, "cni0"); got != "0" {
		t.Errorf("after the next check: %s", got)
	}
}

// TestRetriesArePaced lets switching route_localnet off fail for long: it is tried
// again, at growing intervals.
func TestRetriesArePaced(t *testing.T) {
	n := newTestNode(t, "cni0")
	one := n.addPod(t, "one", 2)
	m := newManager(t, n.node)
	f := breakHost(m, func(call string) bool { return call == "SetRouteLocalnet false" }, func() bool { return false })
	run(t, t.Context(), n.node, m)
	mustMap(t, m, one.pod(t, "tcp 80:80"))
	began := time.Now()
	mustUnmap(t, m, "sandbox-one")
	eventually(t, 10*time.Second, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if got := f.failed["SetRouteLocalnet false"]; got < 4 {
			return fmt.Errorf("tried %d times", got)
		}
		return nil
	})
	if took := time.Since(began); took < 3*retryAfter { // Unmap, at once, 250 ms and 500 ms later
		t.Errorf("tried 4 times in %v", took)
	}
	if err := m.Available(); err != nil {
		t.Errorf("hostPorts can be mapped all the while: %v", err)
	}
}

// TestRouteLocalnetIsRecorded flushes the table while no daemon runs. The next one
// must know on which interfaces route_localnet has to be switched off.
func TestRouteLocalnetIsRecorded(t *testing.T) {
	n := newTestNode(t, "cni0")
	one := n.addPod(t, "one", 2)
	records := &testRecords{}
	withRecords := func(c *Config) { c.Records = records }
	mustMap(t, newManager(t, n.node, withRecords), one.pod(t, "tcp 80:80"))
	n.node.nft(t, "flush ruleset")
	next := newManagerFor(t, n.node, withRecords)
	if err := next.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := localnet(t, n.node, "cni0"); got != "0" {
		t.Errorf("after another daemon without pods: %s", got)
	}
	// A mode in which somebody else maps hostPorts knows it too.
	mustMap(t, next, one.pod(t, "tcp 80:80"))
	n.node.nft(t, "flush ruleset")
	if err := newManagerFor(t, n.node, withRecords, onDemand).Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := n.node.readSysctl(t, "net/ipv4/conf/cni0/route_localnet"); got != "0" {
		t.Errorf("in another mode: %s", got)
	}
	// What cannot be recorded is not switched on.
	last := newManager(t, n.node, withRecords)
	records.err = errors.New("disk full")
	if err := last.Map(t.Context(), one.pod(t, "tcp 80:80")); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("mapped without a record: %v", err)
	}
	if got := localnet(t, n.node, "cni0"); got != "0" {
		t.Errorf("without a record: %s", got)
	}
	// An interface that was on before is neither recorded nor switched off.
	records.err = nil
	n.node.sysctl(t, "net/ipv4/conf/cni0/route_localnet", "1")
	mustMap(t, last, one.pod(t, "tcp 80:80"))
	if got := string(records.values[recordName]); got != "[]" {
		t.Errorf("recorded: %s", got)
	}
	if err := newManagerFor(t, n.node, withRecords).Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := localnet(t, n.node, "cni0"); got != "1" {
		t.Errorf("on before us: %s", got)
	}
}

// TestRecordOfOlderVersion finds a table and no record, as a version before the
// record leaves them.
func TestRecordOfOlderVersion(t *testing.T) {
	n := newTestNode(t, "cni0")
	one := n.addPod(t, "one", 2)
	mustMap(t, newManager(t, n.node), one.pod(t, "tcp 80:80"))
	n.node.nft(t, "flush chain inet crinet hostports; delete set inet crinet protected4") // which it does not have
	next := newManagerFor(t, n.node, func(c *Config) { c.Records = &testRecords{} })
	if err := next.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := localnet(t, n.node, "cni0"); got != "0" {
		t.Errorf("after another daemon without pods: %s", got)
	}
}

// TestDesiredStateDependsOnPodsAlone computes the union of pods that share elements
// in different orders.
func TestDesiredStateDependsOnPodsAlone(t *testing.T) {
	bridge := facts{paths: [2]kernel.Path{{Link: kernel.Link{Name: "cni0", Kind: "bridge"}}}}
	ids := []string{"a", "b", "c"}
	needs := make(map[string]need)
	for i, id := range ids {
		n, err := needOf(testPod(t, id, []string{netip.AddrFrom4([4]byte{10, 1, 0, 2}).String()}, fmt.Sprintf("tcp %d:80", i+1)), bridge)
		if err != nil {
			t.Fatal(err)
		}
		needs[id] = n
	}
	forward, backward := newDesired(), newDesired()
	for i := range ids {
		forward.set(ids[i], needs[ids[i]])
		backward.set(ids[len(ids)-1-i], needs[ids[len(ids)-1-i]])
	}
	forward.set("a", need{})
	backward.set("a", need{})
	if diff := cmp.Diff(forward.elements, backward.elements); diff != "" {
		t.Errorf("two orders: %s", diff)
	}
	if len(forward.localnet["cni0"]) != 2 || len(forward.pending().Remove) != 0 {
		t.Errorf("%v %v", forward.localnet, forward.pending())
	}
}
