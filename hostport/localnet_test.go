package hostport

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// localnet is route_localnet of an interface, and whether the table lists it as ours.
func localnet(t *testing.T, ns netns, name string) string {
	t.Helper()
	listed := ""
	if out := ns.run(t, "nft", "list", "set", "inet", tableName, setRouteLocalnet); strings.Contains(out, `"`+name+`"`) {
		listed = " listed"
	}
	return ns.readSysctl(t, "net/ipv4/conf/"+name+"/route_localnet") + listed
}

func TestRouteLocalnetComesAndGoes(t *testing.T) {
	n := newTestNode(t, "cni0")
	one, two := n.addPod(t, "one", 2), n.addPod(t, "two", 3)
	expect := func(when, want string) {
		t.Helper()
		if got := localnet(t, n.node, "cni0"); got != want {
			t.Errorf("%s: %s, want %s", when, got, want)
		}
	}
	m := newManager(t, n.node)
	expect("start", "0")
	mustMap(t, m, one.pod(t, "tcp "+nodeIP4+" 80:80", "tcp :: 80:80"))
	expect("no mapping for 127.0.0.1", "0")
	mustMap(t, m, one.pod(t, "tcp 80:80"))
	expect("one pod", "1 listed")
	mustMap(t, m, two.pod(t, "udp 127.0.0.1 80:80"))
	mustUnmap(t, m, "sandbox-one")
	expect("the other pod", "1 listed")
	n.node.sysctl(t, "net/ipv4/conf/cni0/route_localnet", "0")
	mustMap(t, m, one.pod(t, "tcp 80:80"))
	expect("switched off by somebody", "1 listed")
	lacks := func(want string) {
		t.Helper()
		if missing, err := m.Lacking(t.Context(), one.pod(t, "tcp 80:80")); err != nil || strings.Join(missing, ", ") != want {
			t.Errorf("the pod lacks %q, %v; want %q", missing, err, want)
		}
	}
	lacks("")
	n.node.sysctl(t, "net/ipv4/conf/cni0/route_localnet", "0")
	lacks("route_localnet on cni0, which is off")
	if _, err := m.check(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	expect("switched off, and checked", "1 listed")

	next := newManagerFor(t, n.node)
	if err := next.Sync(t.Context(), []Pod{two.pod(t, "udp 127.0.0.1 80:80")}); err != nil {
		t.Fatal(err)
	}
	expect("another daemon", "1 listed")
	mustUnmap(t, next, "sandbox-two")
	expect("no pod", "0")

	mustMap(t, next, one.pod(t, "tcp 80:80"))
	next = newManagerFor(t, n.node)
	if err := next.Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	expect("another daemon without pods", "0")

	n.node.sysctl(t, "net/ipv4/conf/cni0/route_localnet", "1")
	mustMap(t, next, one.pod(t, "tcp 80:80"))
	mustUnmap(t, next, "sandbox-one")
	expect("on before us", "1")
}

// TestUplinkIsLeftAlone maps a pod that is reached over a gateway.
func TestUplinkIsLeftAlone(t *testing.T) {
	n := newTestNode(t, "cni0")
	n.node.run(t, "ip", "route", "add", "10.9.0.0/16", "via", clientIP4)
	m := newManager(t, n.node)
	mustMap(t, m, testPod(t, "far", []string{"10.9.0.2"}, "tcp 80:80"))
	if got := localnet(t, n.node, "uplink"); got != "0" {
		t.Errorf("uplink: %s", got)
	}
}

// A run in a mode in which somebody else maps hostPorts takes away what an earlier one
// has left.
func TestNothingIsLeftOnDemand(t *testing.T) {
	n := newTestNode(t, "cni0")
	one := n.addPod(t, "one", 2)
	before := n.node.run(t, "nft", "list", "ruleset")
	m := newManager(t, n.node)
	mustMap(t, m, one.pod(t, "tcp 80:80"))
	next := newManagerFor(t, n.node, onDemand)
	for range 2 {
		if err := next.Sync(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, n.node.run(t, "nft", "list", "ruleset")); diff != "" {
			t.Errorf("the ruleset: %s", diff)
		}
		if got := n.node.readSysctl(t, "net/ipv4/conf/cni0/route_localnet"); got != "0" {
			t.Errorf("route_localnet is %s", got)
		}
	}
	// Run doesn't bring the table back.
	if healed, err := next.check(t.Context(), ""); healed || err != nil {
		t.Errorf("healed: %v, %v", healed, err)
	}
	if diff := cmp.Diff(before, n.node.run(t, "nft", "list", "ruleset")); diff != "" {
		t.Errorf("the ruleset after a check: %s", diff)
	}
}

// hairpinOf reads the hairpin mode of a bridge port.
func hairpinOf(t *testing.T, ns netns, port string) bool {
	t.Helper()
	out := ns.run(t, "ip", "-d", "link", "show", port)
	if !strings.Contains(out, "hairpin") {
		t.Fatalf("no bridge port: %s", out)
	}
	return strings.Contains(out, "hairpin on")
}

func TestSetHairpin(t *testing.T) {
	n := newTestNode(t, "cni0")
	one, two := n.addPod(t, "one", 2), n.addPod(t, "two", 3)
	for i, want := range []bool{true, false} {
		changed, err := SetHairpin(t.Context(), one.path(), "eth0", n.node.fd())
		if err != nil || changed != want {
			t.Errorf("call %d: changed %v, %v", i, changed, err)
		}
	}
	if !hairpinOf(t, n.node, "vethone") || hairpinOf(t, n.node, "vethtwo") {
		t.Error("hairpin mode is to be on for one and off for two")
	}
	n.node.run(t, "ip", "link", "set", "vethtwo", "nomaster")
	two.run(t, "ip", "link", "add", "br0", "type", "bridge")
	for _, ifname := range []string{"eth0", "lo", "br0"} {
		if changed, err := SetHairpin(t.Context(), two.path(), ifname, n.node.fd()); err != nil || changed {
			t.Errorf("%s: changed %v, %v", ifname, changed, err)
		}
	}
	if changed, err := SetHairpin(t.Context(), one.path(), "eth0", n.client.fd()); err != nil || changed {
		t.Errorf("the wrong node: changed %v, %v", changed, err)
	}
	for _, wrong := range [][2]string{{one.path(), "eth9"}, {"/proc/self/ns/nothing", "eth0"}, {"/dev/null", "eth0"}} {
		if _, err := SetHairpin(t.Context(), wrong[0], wrong[1], n.node.fd()); err == nil || !strings.Contains(err.Error(), wrong[0]) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}

// TestHairpinIsNeeded shows what SetHairpin is for.
func TestHairpinIsNeeded(t *testing.T) {
	n := newTestNode(t, "cni0")
	n.bridgeNetfilter(t, "1")
	web := n.addPod(t, "web", 2)
	web.serve(t, "web", "tcp4", ":8080")
	m := newManager(t, n.node)
	mustMap(t, m, web.pod(t, "tcp 80:8080"))
	web.expect(t, "tcp4", hostPort(nodeIP4, 80), "")
	if _, err := SetHairpin(t.Context(), web.path(), "eth0", n.node.fd()); err != nil {
		t.Fatal(err)
	}
	web.expect(t, "tcp4", hostPort(nodeIP4, 80), "web "+gwIP4)
	eventually(t, time.Second, func() error { return isIntact(n.node, m) })
}
