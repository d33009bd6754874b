package builtin_test

import (
	"fmt"
	"math/rand/v2"
)

// maxRanges is how many range sets of one IP family a configuration has.
const maxRanges = 2

// testCase is a random configuration, what the runtime gives with it, and what stands
// before ADD.
type testCase struct {
	conf   map[string]any
	args   string
	mac    string // of the sandbox's end, if it is not random
	before [][]string
	inPod  [][]string
	env    string // flannel's subnet.env
	earlier,
	noNetNS bool
}

// generator makes random cases.
type generator struct{ *rand.Rand }

// oneIn is true once in n times.
func (g generator) oneIn(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g generator, from ...T) T { return from[g.IntN(len(from))] }

// maybe sets a key once in n times.
func (g generator) maybe(n int, conf map[string]any, key string, value any) {
	if g.oneIn(n) {
		conf[key] = value
	}
}

func (g generator) testCase(typ string) *testCase {
	c := &testCase{conf: map[string]any{
		"cniVersion": pick(g, "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), "name": "twin", "type": typ,
	}}
	switch typ {
	case "flannel":
		c.conf["cniVersion"] = pick(g, "0.3.0", "0.3.1", "0.4.0") // v0.9.1 knows no later one
		g.flannel(c)
	case "bridge":
		g.bridge(c.conf, true)
	}
	if typ != "flannel" {
		g.maybe(3, c.conf, "mtu", pick(g, 0, 1280, 1400, 9000))
		// The binaries' own masquerade is compared by traffic: see package integration.
		g.maybe(4, c.conf, "ipMasq", false)
		g.maybe(8, c.conf, "ipMasqBackend", pick(g, "iptables", "nftables"))
		g.maybe(5, c.conf, "dns", map[string]any{"nameservers": []string{"10.1.0.1"}, "domain": "example.org", "search": []string{"a", "b"}, "options": []string{"ndots:5"}})
		if typ == "ptp" || !g.oneIn(12) {
			c.conf["ipam"] = g.ipam()
		}
		if _, has := c.conf["ipam"]; !has && g.oneIn(2) {
			c.conf["disableContainerInterface"] = g.oneIn(2)
		}
	}
	g.asked(c)
	g.surroundings(c)
	return c
}

// bridge adds the keys of the plugin bridge.
func (g generator) bridge(conf map[string]any, withDAD bool) {
	g.maybe(2, conf, "bridge", pick(g, "br0", "a.bridge-15char"))
	g.maybe(2, conf, "isGateway", true)
	g.maybe(2, conf, "isDefaultGateway", !g.oneIn(4))
	g.maybe(3, conf, "forceAddress", g.oneIn(2))
	g.maybe(3, conf, "hairpinMode", !g.oneIn(3))
	g.maybe(6, conf, "promiscMode", !g.oneIn(3))
	g.maybe(3, conf, "portIsolation", !g.oneIn(3))
	g.maybe(8, conf, "vlan", 0)
	g.maybe(8, conf, "preserveDefaultVlan", g.oneIn(2))
	g.maybe(8, conf, "macspoofchk", false)
	if withDAD {
		g.maybe(8, conf, "enabledad", !g.oneIn(3))
	}
}

func (g generator) ipam() map[string]any {
	ipam := map[string]any{"type": "host-local", "dataDir": "DATADIR"}
	v4, v6 := true, g.oneIn(3)
	if v6 && g.oneIn(3) {
		v4 = false
	}
	if v4 && g.oneIn(2) {
		for key, value := range g.addressRange("10.1.0") {
			ipam[key] = value
		}
		v4 = g.oneIn(4)
	}
	var sets [][]map[string]any
	for i := range maxRanges {
		if v4 && (i == 0 || g.oneIn(3)) {
			set := []map[string]any{g.addressRange(fmt.Sprintf("10.2%d.0", i))}
			if g.oneIn(4) {
				set = append(set, g.addressRange(fmt.Sprintf("10.2%d.1", i)))
			}
			sets = append(sets, set)
		}
		if v6 && (i == 0 || g.oneIn(4)) {
			sets = append(sets, []map[string]any{g.range6(i)})
		}
	}
	if sets != nil {
		ipam["ranges"] = sets
	}
	g.routes(ipam)
	g.maybe(10, ipam, "resolvConf", pick(g, "DATADIR/resolv.conf", "DATADIR/missing"))
	return ipam
}

// addressRange is a range of a /24 (or less) of IPv4.
func (g generator) addressRange(prefix string) map[string]any {
	r := map[string]any{"subnet": prefix + ".0/24"}
	switch g.IntN(6) {
	case 0:
		r["rangeStart"], r["rangeEnd"] = prefix+".10", prefix+".20"
	case 1:
		r["gateway"] = prefix + ".254"
	case 2:
		r["rangeStart"], r["gateway"] = prefix+".77", prefix+".77"
	case 3:
		r["subnet"] = prefix + pick(g, ".0/28", ".0/30", ".0/29")
	}
	if g.oneIn(40) {
		r["subnet"] = prefix + pick(g, ".0/32", ".1/24", "/24") // wrong
	}
	return r
}

func (g generator) range6(i int) map[string]any {
	prefix := fmt.Sprintf("2001:db8:%d::", i)
	r := map[string]any{"subnet": prefix + "/64"}
	if g.oneIn(3) {
		r["rangeStart"], r["rangeEnd"], r["gateway"] = prefix+"100", prefix+"200", prefix+"1"
	}
	return r
}

func (g generator) routes(ipam map[string]any) {
	if g.oneIn(2) {
		return
	}
	var routes []map[string]any
	for _, dst := range []string{"0.0.0.0/0", "192.0.2.0/24", "198.51.100.7/32", "::/0", "2001:db8:ffff::/48"} {
		if !g.oneIn(3) {
			continue
		}
		r := map[string]any{"dst": dst}
		g.maybe(5, r, "mtu", 1300)
		g.maybe(5, r, "advmss", 1200)
		g.maybe(5, r, "priority", 77)
		g.maybe(6, r, "table", 100)
		g.maybe(12, r, "scope", pick(g, 0, 253))
		if dst == "192.0.2.0/24" {
			g.maybe(3, r, "gw", pick(g, "10.1.0.1", "10.20.0.1", "203.0.113.1"))
		}
		routes = append(routes, r)
	}
	ipam["routes"] = routes
}

// flannel adds the keys of the plugin flannel and its subnet.env.
func (g generator) flannel(c *testCase) {
	c.conf["subnetFile"], c.conf["dataDir"] = "DATADIR/subnet.env", "DATADIR/flannel"
	c.env = fmt.Sprintf("FLANNEL_MTU=%d\nFLANNEL_IPMASQ=true\n", pick(g, 1450, 1400))
	if !g.oneIn(8) {
		c.env += "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.3.1/24\n"
	} else {
		c.env += "FLANNEL_IPV6_NETWORK=2001:db8::/48\nFLANNEL_IPV6_SUBNET=2001:db8:0:3::1/64\n"
	}
	if g.oneIn(4) {
		c.env += "FLANNEL_IPV6_NETWORK=2001:db8::/48\nFLANNEL_IPV6_SUBNET=2001:db8:0:3::1/64\n"
	}
	ipam := map[string]any{"dataDir": "DATADIR"}
	if g.oneIn(2) {
		ipam["routes"] = []map[string]string{{"dst": "192.0.2.0/24"}, {"dst": "198.51.100.0/24", "gw": "10.1.3.9"}}
	}
	c.conf["ipam"] = ipam
	if g.oneIn(4) {
		return
	}
	delegate := map[string]any{}
	typ := pick(g, "", "", "bridge", "ptp")
	if typ != "" {
		delegate["type"] = typ
	}
	if typ != "ptp" {
		g.bridge(delegate, false)
	}
	g.maybe(5, delegate, "mtu", 1280)
	g.maybe(5, delegate, "ipMasq", false)
	c.conf["delegate"] = delegate
}

// asked adds what the runtime and CNI_ARGS ask for.
func (g generator) asked(c *testCase) {
	runtime, args := map[string]any{}, map[string]any{}
	address := pick(g, "10.1.0.15", "10.1.0.15/24", "10.20.0.5", "2001:db8:0::150", "203.0.113.9")
	// Not in two ways: which of two addresses a range gets is random.
	switch g.IntN(12) {
	case 0, 1:
		runtime["ips"] = []string{address}
	case 2:
		args["ips"] = []string{pick(g, "10.1.0.16", "10.20.0.6")}
	case 3:
		c.args = "IgnoreUnknown=1;IP=" + pick(g, "10.1.0.17", "10.20.0.7")
	}
	if g.oneIn(6) {
		runtime["mac"] = "02:00:00:00:00:01"
		c.mac = "02:00:00:00:00:01"
	} else if g.oneIn(8) {
		args["mac"] = pick(g, "02:00:00:00:00:02", "02:00:00:00:00:02", "nonsense")
		c.mac = "02:00:00:00:00:02"
	}
	if g.oneIn(8) {
		runtime["ipRanges"] = [][]map[string]any{{{"subnet": "10.30.0.0/24"}}}
	}
	if len(runtime) > 0 {
		c.conf["runtimeConfig"] = runtime
		c.conf["capabilities"] = map[string]bool{"mac": true, "ips": true, "ipRanges": true, "portMappings": true}
	}
	if len(args) > 0 && c.conf["type"] != "flannel" {
		c.conf["args"] = map[string]any{"cni": args}
	}
	if c.args != "" {
		return
	}
	c.args = pick(g, "", "IgnoreUnknown=1;K8S_POD_NAME=p", "IgnoreUnknown=true;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")
	switch g.IntN(30) {
	case 0:
		c.args = "K8S_POD_NAME=p" // unknown
	case 1:
		c.args = "IgnoreUnknown=1;MAC=02:00:00:00:00:03"
	}
}

// surroundings says what stands before ADD.
func (g generator) surroundings(c *testCase) {
	bridge := "cni0"
	if name, ok := c.conf["bridge"].(string); ok {
		bridge = name
	}
	if delegate, ok := c.conf["delegate"].(map[string]any); ok {
		if name, ok := delegate["bridge"].(string); ok {
			bridge = name
		}
	}
	switch g.IntN(16) {
	case 0:
		c.before = [][]string{{"ip", "link", "add", bridge, "type", "bridge"}, {"ip", "address", "add", "10.1.0.99/24", "dev", bridge}}
	case 1:
		c.before = [][]string{{"ip", "link", "add", bridge, "type", "bridge"}, {"ip", "address", "add", "2001:db8::99/60", "dev", bridge}, {"ip", "link", "set", bridge, "up"}}
	case 2:
		c.before = [][]string{{"ip", "link", "add", bridge, "type", "veth", "peer", "name", "other"}}
		// The binary sets what is no bridge promiscuous before it fails.
		delete(c.conf, "promiscMode")
		if delegate, ok := c.conf["delegate"].(map[string]any); ok {
			delete(delegate, "promiscMode")
		}
	case 3:
		c.inPod = [][]string{{"ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"}}
	case 4:
		c.earlier = true
	case 5:
		c.noNetNS = true
	case 6:
		c.before = [][]string{{"ip", "link", "add", bridge, "mtu", "1300", "type", "bridge"}, {"ip", "link", "set", bridge, "up"}}
	case 7:
		c.inPod = [][]string{{"sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"}}
	}
}
