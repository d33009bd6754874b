package doctor

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridged are an uplink, the bridge mynet0 and a port of it.
func bridged(change func(uplink, bridge, port *netlink.LinkAttrs)) *links {
	up, bridge, port := link(1, "eth0", nil), link(2, "mynet0", nil), link(3, "veth1", nil)
	port.Attrs().MasterIndex = 2
	if change != nil {
		change(up.Attrs(), bridge.Attrs(), port.Attrs())
	}
	return linksOf(up, bridge, port)
}

func TestAddressChecks(t *testing.T) {
	t.Parallel()
	mtus := func(up, bridge, port int) *links {
		return bridged(func(u, b, p *netlink.LinkAttrs) { u.MTU, b.MTU, p.MTU = up, bridge, port })
	}
	tunnel := func(mtu int) *links {
		a := netlink.NewLinkAttrs()
		a.Index, a.Name, a.MTU, a.RawFlags = 4, "flannel.1", mtu, upFlags
		l := mtus(1500, 1500, 1500)
		l.all = append(l.all, &netlink.Vxlan{LinkAttrs: a})
		l.byID[4] = l.all[3]
		l = l.route(4, "10.10.1.0/24")
		l.routes[1].Gw = []byte{10, 10, 1, 0}
		return l
	}
	failed := bridged(nil).addr(2, "10.10.0.1/24").addr(2, "fd00::1/64")
	failed.addrs[1].Flags = unix.IFA_F_DADFAILED
	none := bridged(nil)
	none.routes = nil
	wide := conf("/etc/cni/net.d/10-mynet.conflist", strings.Replace(mynet, `"isGateway"`, `"mtu":9000,"isGateway"`, 1))
	kubelet := func(dns string) map[string]string {
		return conf("/var/lib/kubelet/config.yaml", "clusterDNS:\n- "+dns+"\nclusterDomain: x\n")
	}
	api := func(r string) map[string]string {
		return conf("/etc/kubernetes/manifests/kube-apiserver.yaml", "  - --service-cluster-ip-range="+r+"\n")
	}
	run(t, []tc{
		{name: "good", check: "uplink", files: conf(), links: bridged(nil).addr(1, "192.0.2.5/24"), want: OK, found: "eth0"},
		{name: "no route", check: "uplink", files: conf(), links: none, want: Outcome(Warning), mend: "ip route add default"},
		{name: "down", check: "uplink", files: conf(), links: bridged(func(u, _, _ *netlink.LinkAttrs) { u.RawFlags = unix.IFF_UP }), want: Outcome(Warning), found: "eth0 is down", mend: "ip link set eth0 up"},
		{name: "image", check: "uplink", files: conf(), image: true, want: Unknown},
		{name: "good", check: "bridge-gateway", files: conf(), links: bridged(nil).addr(2, "10.10.0.1/24"), want: OK},
		{name: "no address", check: "bridge-gateway", files: conf(), links: bridged(nil).addr(1, "10.10.0.1/24"), want: Outcome(Error), found: "1 ports but not", mend: "ip addr add 10.10.0.1/24 dev mynet0"},
		{name: "down", check: "bridge-gateway", files: conf(), links: bridged(func(_, b, _ *netlink.LinkAttrs) { b.Flags = 0 }), want: Outcome(Error), mend: "ip link set mynet0 up"},
		{name: "no bridge yet", check: "bridge-gateway", files: conf(), links: linksOf(link(1, "eth0", nil)), want: Skipped, found: "first pod"},
		{name: "IPv6 twice on the link", check: "bridge-gateway", files: conf(), links: failed, want: Outcome(Error), found: "fd00::1/64 of the bridge mynet0 failed duplicate", mend: "ip addr del fd00::1/64 dev mynet0"},
		{name: "one each", check: "pod-addresses", crinetd: &Crinetd{Pods: []Pod{{Name: "a/b", State: "attached", Addresses: []string{"10.1.0.2/24"}}, {Name: "a/c", State: "detaching", Addresses: []string{"10.1.0.2/24"}}}}, want: OK, found: "1 pod, 1 address"},
		{name: "twice", check: "pod-addresses", crinetd: &Crinetd{Pods: []Pod{{Name: "a/b", State: "attached", Addresses: []string{"10.1.0.2"}}, {Name: "a/c", State: "attached", Addresses: []string{"10.1.0.2/24"}}}}, want: Outcome(Error), found: "a/b and a/c both have 10.1.0.2", mend: "delete one"},
		{name: "same", check: "mtu", files: conf(), links: mtus(1500, 1500, 1500), want: OK},
		{name: "smaller is safe", check: "mtu", files: conf(), links: mtus(9000, 1500, 1500), want: OK},
		{name: "larger than uplink", check: "mtu", files: conf(), links: mtus(1400, 1500, 1500), want: Outcome(Warning), found: "mynet0 has MTU 1500, uplink eth0 has 1400", mend: "ip link set mynet0 mtu 1400"},
		{name: "port", check: "mtu", files: conf(), links: mtus(1500, 1400, 1500), want: Outcome(Warning), found: "its port veth1 1500", mend: "ip link set mynet0 mtu 1500"},
		{name: "configuration", check: "mtu", files: wide, links: mtus(1500, 1500, 1500), want: Outcome(Warning), found: "MTU 9000", mend: `set "mtu": 1500`},
		{name: "flag", check: "mtu", files: conf(), flags: []string{"--network-plugin-mtu=8000"}, links: mtus(1500, 1500, 1500), want: Outcome(Warning), found: "8000"},
		{name: "larger than tunnel", check: "mtu", files: conf(), links: tunnel(1450), want: Outcome(Warning), found: "tunnel flannel.1 has 1450", mend: "ip link set mynet0 mtu 1450"},
		{name: "tunnel larger than uplink", check: "mtu", files: conf(), links: tunnel(1500), want: Outcome(Warning), found: "1450 is the most for vxlan", mend: "ip link set flannel.1 mtu 1450"},
		{name: "good", check: "subnet-overlap-node", files: conf(), links: bridged(nil).addr(1, "192.0.2.5/24").addr(2, "10.10.0.1/24").route(2, "10.10.0.0/24"), want: OK},
		{name: "address", check: "subnet-overlap-node", files: conf(), links: bridged(nil).addr(1, "10.10.0.77/16"), want: Outcome(Error), found: "10.10.0.77/16, an address of eth0", mend: "ip addr del"},
		{name: "route", check: "subnet-overlap-node", files: conf(), links: linksOf(link(1, "eth0", nil), link(2, "docker0", nil)).route(2, "10.10.0.0/16"), want: Outcome(Error), found: "route 10.10.0.0/16 by docker0"},
		{name: "a pod's own route", check: "subnet-overlap-node", files: conf(), links: bridged(nil).route(3, "10.10.0.7/32"), want: OK},
		{name: "apart", check: "subnet-overlap-service", files: api("10.96.0.0/12,fd00::/108"), want: OK, found: "kube-apiserver.yaml:1"},
		{name: "range", check: "subnet-overlap-service", files: api("10.0.0.0/8"), want: Outcome(Error), found: "10.0.0.0/8 of Services (/etc/kubernetes/manifests/kube-apiserver.yaml:1)", mend: "another subnet"},
		{name: "DNS", check: "subnet-overlap-service", files: kubelet("10.10.0.10"), want: Outcome(Error), found: "10.10.0.10/32", mend: "another subnet"},
		{name: "DNS apart", check: "subnet-overlap-service", files: kubelet(`"10.96.0.10"`), want: OK},
		{name: "not told", check: "subnet-overlap-service", files: conf(), want: Skipped},
		{name: "apart", check: "subnet-overlap-networks", files: conf("/etc/cni/net.d/20.conflist", dual), want: OK},
		{name: "overlap", check: "subnet-overlap-networks", files: conf("/etc/cni/net.d/20.conflist", strings.Replace(mynet, `"name":"mynet"`, `"name":"b"`, 1)), want: Outcome(Warning), found: "overlap", mend: "/etc/cni/net.d/20.conflist"},
		{name: "same name", check: "subnet-overlap-networks", files: conf("/etc/cni/net.d/20.conflist", strings.Replace(dual, `"name":"dual"`, `"name":"mynet"`, 1)), want: Outcome(Warning), found: "both have the network name mynet", mend: "another name"},
	})
}

func TestHostLocalChecks(t *testing.T) {
	t.Parallel()
	const dir = "/var/lib/cni/networks/mynet/"
	tiny := func(more ...string) map[string]string {
		files := conf(more...)
		files["/etc/cni/net.d/10-mynet.conflist"] = strings.Replace(mynet, "10.10.0.0/24", "10.10.0.0/29", 1) // .2 to .6
		return files
	}
	held := told(func(r *Runtime) { r.Sandboxes = []string{"aaa", "old bbb"} })
	var full []string
	for _, last := range "23456" {
		full = append(full, dir+"10.10.0."+string(last), "aaa\r\neth0")
	}
	large := strings.Replace(dual, `"name"`, `"x":1,"name"`, 1)
	run(t, []tc{
		{name: "empty", check: "host-local-space", files: tiny(), want: OK, found: "0 of 5 addresses"},
		{name: "some", check: "host-local-space", files: tiny(full[:4]...), want: OK, found: "2 of 5 addresses"},
		{name: "files that are no addresses", check: "host-local-space", files: tiny(dir+"lock", "", dir+"last_reserved_ip.0", "10.10.0.2"), want: OK, found: "0 of 5"},
		{name: "all", check: "host-local-space", files: tiny(full...), want: Outcome(Error), found: "5 of 5 addresses of 10.10.0.0/29 are taken, none is left", mend: "range in /etc/cni/net.d/10-mynet.conflist"},
		{name: "IPv6", check: "host-local-space", files: map[string]string{"/etc/cni/net.d/a.conflist": large}, want: OK, found: "0 of 18446744073709551614"},
		{name: "pod CIDR not known", check: "host-local-space", files: map[string]string{"/etc/cni/net.d/a.conflist": `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}}]}`}, want: Unknown},
		{name: "held", check: "host-local-leaks", files: tiny(full[:4]...), runtime: held, want: OK, found: "2 addresses held"},
		{name: "new", check: "host-local-leaks", files: tiny(dir+"10.10.0.2", "ccc"), runtime: held, want: OK},
		{name: "leaked", check: "host-local-leaks", files: tiny(dir+"10.10.0.2", "old ccc\r\neth0", dir+"10.10.0.3", "old bbb"), runtime: held, want: Outcome(Warning), found: "1 address of mynet", mend: "rm " + dir + "10.10.0.2"},
		{name: "empty file", check: "host-local-leaks", files: tiny(dir+"10.10.0.2", oldAndEmpty), runtime: held, want: Outcome(Warning), found: "10.10.0.2 (an empty file: an ADD was killed, or somebody keeps it)", mend: "rm " + dir + "10.10.0.2"},
		{name: "crinetd's", check: "host-local-leaks", files: tiny(dir+"10.10.0.2", "old ccc"), runtime: held, crinetd: &Crinetd{Pods: []Pod{{Sandbox: "old ccc"}}}, want: OK},
		{name: "nobody says", check: "host-local-leaks", files: tiny(full...), want: Unknown, found: "5 addresses taken"},
	})
}

func TestLeftoverChecks(t *testing.T) {
	t.Parallel()
	const cache = "/var/lib/crinet/cni/results/mynet-ccc-eth0"
	run(t, []tc{
		{name: "empty", check: "cni-cache", files: conf(), want: OK},
		{name: "held", check: "cni-cache", files: conf(cache, "old"), runtime: told(func(r *Runtime) { r.Sandboxes = []string{"ccc"} }), want: OK, found: "1 entry"},
		{name: "stale", check: "cni-cache", files: conf(cache, "old", "/var/lib/cni/results/podman-ddd-eth0", "old"), runtime: told(nil), want: Outcome(Info), found: "1 of 1", mend: "rm " + cache},
		{name: "nobody says", check: "cni-cache", files: conf(cache, "old"), want: Unknown},
	})
}
