package drift

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/inspect"
)

func setSysctl(t *testing.T, key, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// kinds are kinds of drift, made by hand. The second pod is left alone.
var kinds = []struct {
	name  string
	conf  string
	drift func(t *testing.T, b *bed, pod *testPod)
	undo  func(t *testing.T)
	parts []string
	// both: the other pod is concerned as well. repaired: repair mends it.
	both, repaired bool
}{
	{"interface deleted", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "link del eth0") }, nil,
		[]string{inspect.PartInterface, inspect.PartHostEnd}, false, false},
	{"interface down", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "link set eth0 down") }, nil,
		[]string{inspect.PartInterface}, false, true},
	{"IPv4 address removed", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "-4 address flush dev eth0") }, nil,
		[]string{inspect.PartAddress, inspect.PartRoute}, false, true},
	{"IPv6 address removed", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "-6 address flush dev eth0 scope global") }, nil,
		[]string{inspect.PartAddress}, false, true},
	{"default route removed", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "route del default") }, nil,
		[]string{inspect.PartRoute}, false, true},
	{"route removed", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "route del 192.0.2.0/24") }, nil,
		[]string{inspect.PartRoute}, false, true},
	{"host's end down", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, nil, "link set "+p.host+" down") }, nil,
		[]string{inspect.PartHostEnd}, false, true},
	{"out of the bridge", onBridge, func(t *testing.T, _ *bed, p *testPod) { ip(t, nil, "link set "+p.host+" nomaster") }, nil,
		[]string{inspect.PartHostEnd}, false, true},
	{"hairpin mode off", onBridge, func(t *testing.T, _ *bed, p *testPod) {
		ip(t, nil, "link set "+p.host+" type bridge_slave hairpin off")
	}, nil, []string{inspect.PartHostEnd}, false, true},
	{"bridge down", onBridge, func(t *testing.T, _ *bed, _ *testPod) { ip(t, nil, "link set br0 down") }, nil,
		[]string{inspect.PartBridge}, true, true},
	{"bridge gone", onBridge, func(t *testing.T, _ *bed, _ *testPod) { ip(t, nil, "link del br0") }, nil,
		[]string{inspect.PartHostEnd, inspect.PartBridge}, true, false},
	{"gateway's address removed", onBridge, func(t *testing.T, _ *bed, _ *testPod) { ip(t, nil, "address del 10.20.0.1/16 dev br0") }, nil,
		[]string{inspect.PartBridge}, true, true},
	{"way removed", onBridge, func(t *testing.T, _ *bed, _ *testPod) { ip(t, nil, "route del 10.20.0.0/16 dev br0") }, nil,
		[]string{inspect.PartWay}, true, true},
	{"sysctl changed", onBridge, func(t *testing.T, _ *bed, _ *testPod) { setSysctl(t, "net/ipv4/conf/br0/forwarding", "0") },
		func(t *testing.T) { setSysctl(t, "net/ipv4/conf/br0/forwarding", "1") }, []string{inspect.PartSysctl}, true, false},
	{"element deleted", onBridge, func(_ *testing.T, b *bed, p *testPod) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.lacking[p.key.ContainerID] = "hostPort tcp 80"
	}, nil, []string{inspect.PartTable}, false, false},
	{"ptp: interface deleted", byPTP, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "link del eth0") }, nil,
		[]string{inspect.PartInterface, inspect.PartHostEnd}, false, false},
	{"ptp: host's end down", byPTP, func(t *testing.T, _ *bed, p *testPod) { ip(t, nil, "link set "+p.host+" down") }, nil,
		[]string{inspect.PartHostEnd}, false, true},
	{"ptp: route removed", byPTP, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "route del default") }, nil,
		[]string{inspect.PartRoute}, false, true},
	{"ptp: address removed", byPTP, func(t *testing.T, _ *bed, p *testPod) { ip(t, &p.sandbox, "-4 address flush dev eth0") }, nil,
		[]string{inspect.PartAddress, inspect.PartRoute}, false, false},
	{"ptp: way removed", byPTP, func(t *testing.T, _ *bed, p *testPod) { ip(t, nil, "-4 route flush dev "+p.host) }, nil,
		[]string{inspect.PartWay}, false, true},
}

// Each kind of drift is named, in the log once, and no other; its end is told as well.
func TestDriftIsNamed(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			b := newBed(t, Report)
			pod, other := b.add("one", kind.conf), b.add("other", kind.conf)
			b.clear(pod, other)
			b.start()
			b.rounds(2)
			if all := b.Drifted(); len(all) != 0 {
				t.Fatalf("before anything: %v", all)
			}
			began := time.Now()
			kind.drift(t, b, pod)
			b.await("the drift", func() bool {
				parts := b.named(pod)
				return len(parts) > 0 && !slices.ContainsFunc(kind.parts, func(part string) bool { return !slices.Contains(parts, part) })
			})
			t.Logf("named after %v: %s", time.Since(began).Round(time.Millisecond), b.Of(pod.key))
			if kind.both {
				b.await("the other's drift", func() bool { return len(b.named(other)) > 0 })
			}
			b.rounds(3)
			for _, p := range []*testPod{pod, other} {
				want := 1
				if p == other && !kind.both {
					want = 0
				}
				if told := strings.Count(b.log.String(), "is not as it was made\" pod=default/"+strings.TrimPrefix(p.key.ContainerID, "sandbox-")+" "); told < want || want == 0 && told > 0 || told > 2 {
					t.Errorf("%s was told %d times, want %d; the log is\n%s", p.key.ContainerID, told, want, b.log)
				}
			}
			if kind.undo != nil {
				kind.undo(t)
				b.await("the end", func() bool { return len(b.Drifted()) == 0 })
				if !strings.Contains(b.log.String(), "again as it was made") {
					t.Errorf("the end is not in the log\n%s", b.log)
				}
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if table := slices.Contains(kind.parts, inspect.PartTable); table != (b.rechecks > 0) {
				t.Errorf("the table was looked at %d times", b.rechecks)
			}
		})
	}
}

// Repair mends what crinetd or a built-in had set, to the state that ADD left, and
// leaves the rest.
func TestRepair(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			b := newBed(t, Repair)
			pod, other := b.add("one", kind.conf, "portmap"), b.add("other", kind.conf, "portmap")
			b.clear(pod, other)
			before := state(t, pod)
			b.start()
			b.rounds(2)
			kind.drift(t, b, pod)
			b.await("the drift", func() bool { return b.Of(pod.key) != nil || kind.both && b.Of(other.key) != nil })
			if kind.repaired {
				b.await("the repair", func() bool { return len(b.Drifted()) == 0 && strings.Contains(b.log.String(), "again as it was made") })
				if after := state(t, pod); after != before {
					t.Errorf("it was\n%s\nand is\n%s", before, after)
				}
				if b.metric("crinet_drift_repairs_total") == 0 {
					t.Error("no repair was counted")
				}
			} else {
				b.rounds(5)
				if parts := b.named(pod); len(parts) == 0 {
					t.Errorf("what cannot be repaired is not named any more: %s", b.Of(pod.key))
				}
			}
			if kind.undo != nil {
				kind.undo(t)
			}
		})
	}
}

// state is a pod's network as a text, in which nothing is that differs from look to look.
func state(t *testing.T, p *testPod) string {
	t.Helper()
	var all []string
	for _, args := range [][]string{
		{"nsenter", "--net=" + p.path(), "ip", "-o", "address", "show", "dev", "eth0", "scope", "global"},
		{"nsenter", "--net=" + p.path(), "ip", "-4", "route"},
		{"nsenter", "--net=" + p.path(), "ip", "-6", "route", "show", "default"},
		{"ip", "-4", "-o", "address", "show", "scope", "global"},
		{"ip", "-4", "route"},
		{"bridge", "-d", "link", "show", "dev", p.host},
	} {
		lines := strings.Split(output(t, args...), "\n")
		slices.Sort(lines)
		all = append(all, lines...)
	}
	return strings.Join(all, "\n")
}

// What a plugin that was executed has made is left alone.
func TestOwned(t *testing.T) {
	list := func(types ...string) (a *cni.Attachment) {
		var plugins []string
		for _, typ := range types {
			plugins = append(plugins, fmt.Sprintf(`{"type":%q}`, typ))
		}
		return &cni.Attachment{ConfList: []byte(`{"name":"n","plugins":[` + strings.Join(plugins, ",") + `]}`)}
	}
	builtIn := func(a *cni.Attachment, all ...cni.Builtin) *cni.Attachment {
		a.Builtin = all
		return a
	}
	every := []inspect.Fix{
		inspect.FixLink, inspect.FixAddress, inspect.FixRoute, inspect.FixHostEnd, inspect.FixPort, inspect.FixHairpin, inspect.FixBridge, inspect.FixGateway, inspect.FixWay,
	}
	ptp := []inspect.Fix{inspect.FixRoute, inspect.FixHostEnd, inspect.FixPort, inspect.FixBridge, inspect.FixGateway, inspect.FixWay}
	hairpinOnly := []inspect.Fix{inspect.FixHairpin}
	for _, c := range []struct {
		name    string
		a       *cni.Attachment
		hairpin bool
		want    []inspect.Fix
	}{
		{"bridge built in", builtIn(list("bridge"), cni.Builtin{Type: "bridge"}), true, every},
		{"bridge executed", list("bridge"), true, hairpinOnly},
		{"bridge executed that sets hairpin mode itself", list("bridge"), false, nil},
		{"bridge built in, portmap and firewall executed", builtIn(list("bridge", "portmap", "firewall"), cni.Builtin{Type: "bridge"}), false, every},
		{"bridge built in, sbr executed", builtIn(list("bridge", "sbr"), cni.Builtin{Type: "bridge"}), true, hairpinOnly},
		{"bridge built in, unknown executed", builtIn(list("bridge", "mine"), cni.Builtin{Type: "bridge"}), true, hairpinOnly},
		{"ptp built in", builtIn(list("ptp"), cni.Builtin{Type: "ptp"}), false, ptp},
		{"flannel built in", builtIn(list("flannel"), cni.Builtin{Type: "flannel", Delegate: []byte(`{"type":"bridge"}`)}), false, every},
		{"macvlan", list("macvlan"), true, hairpinOnly},
		{"no configuration", &cni.Attachment{}, false, nil},
	} {
		may := Owned(c.a, c.hairpin)
		var got []inspect.Fix
		for _, fix := range every {
			if may(fix) {
				got = append(got, fix)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
