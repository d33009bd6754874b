package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
)

// place is a node with a pod on it.
type place struct {
	t         *testing.T
	node, pod netns
	subject   Subject
}

func newPlace(t *testing.T) *place {
	p := &place{t: t, node: newNetNS(t), pod: newNetNS(t)}
	p.node.ip(p.t, "link set lo up")
	for _, ns := range []netns{p.node, p.pod} {
		ns.sysctl(p.t, "net/ipv6/conf/default/accept_dad", "0")
	}
	return p
}

// attached says what ADD was and what it answered. PATH stands for the pod's namespace.
func (p *place) attached(conf, result string) {
	p.subject.Attachment = cni.Attachment{
		ContainerID: "c", IfName: "eth0", NetNS: p.pod.path(), Network: "mynet", ConfList: json.RawMessage(conf),
		Result: json.RawMessage(strings.ReplaceAll(result, "PATH", p.pod.path())),
	}
}

func (p *place) inspect() (findings []Finding) {
	p.t.Helper()
	p.node.do(p.t, func() error {
		findings = Inspect(p.t.Context(), p.subject)
		return nil
	})
	return findings
}

// amiss checks that the parts, and no others, are amiss, in this order; each is given
// as PART: TEXT that is in the finding. Each finding has a mend.
func (p *place) amiss(when string, want ...string) {
	p.t.Helper()
	var got []Finding
	findings := p.inspect()
	for _, f := range findings {
		if !f.OK {
			got = append(got, f)
		}
	}
	if OK(findings) != (len(want) == 0) || len(got) != len(want) {
		p.t.Errorf("%s: amiss is %v, want %q", when, got, want)
		return
	}
	for n, f := range got {
		part, text, _ := strings.Cut(want[n], ": ")
		if f.Part != part || !strings.Contains(f.String(), text) || f.Mend == "" || f.Have == "" {
			p.t.Errorf("%s: amiss is %+v, want %q", when, f, want[n])
		}
	}
}

const bridgeConf = `{"cniVersion":"1.0.0","name":"mynet","plugins":[{"type":"bridge","bridge":"cni0","isDefaultGateway":true,` +
	`"ipam":{"type":"host-local","subnet":"10.1.0.0/16"}}]}`

const bridgeResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"veth0"},{"name":"eth0","sandbox":"PATH"}],
	"ips":[{"interface":2,"address":"10.1.0.2/16","gateway":"10.1.0.1"},{"interface":2,"address":"fd00:1::2/64","gateway":"fd00:1::1"}],
	"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0","gw":"fd00:1::1"},{"dst":"192.0.2.0/24","gw":"10.1.0.7"}]}`

// onBridge is a pod as the bridge plugin leaves it.
func onBridge(t *testing.T) *place {
	p := newPlace(t)
	plug(t, p.node, p.pod)
	p.node.ip(p.t, `link add cni0 type bridge
		link set cni0 up
		link set veth0 master cni0
		link set veth0 type bridge_slave hairpin on
		address add 10.1.0.1/16 dev cni0
		address add fd00:1::1/64 dev cni0 nodad`)
	p.pod.ip(p.t, `address add 10.1.0.2/16 dev eth0
		address add fd00:1::2/64 dev eth0 nodad
		route add default via 10.1.0.1
		route add default via fd00:1::1
		route add 192.0.2.0/24 via 10.1.0.7`)
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		p.node.sysctl(p.t, key, "1")
	}
	p.subject.Hairpin = true
	p.attached(bridgeConf, bridgeResult)
	return p
}

// Each part that is taken away is named, and nothing beside it.
func TestDriftOnABridge(t *testing.T) {
	for _, c := range []struct {
		name  string
		drift func(p *place)
		want  []string
	}{
		{"nothing", func(*place) {}, nil},
		{"namespace", func(p *place) { p.subject.Attachment.NetNS = "/run/netns/gone" }, []string{PartNetNS + ": no such file"}},
		{"file in its place", func(p *place) { p.subject.Attachment.NetNS = "/etc/passwd" }, []string{PartNetNS + ": no network namespace"}},
		{"interface", func(p *place) { p.node.ip(p.t, "link del veth0") }, []string{PartInterface + ": eth0", PartHostEnd + ": veth0"}},
		{"interface down", func(p *place) { p.pod.ip(p.t, "link set eth0 down") }, []string{PartInterface + ": eth0, which is down"}},
		{"IPv4 address", func(p *place) { p.pod.ip(p.t, "-4 address flush dev eth0") },
			[]string{PartAddress + ": 10.1.0.2/16 on eth0", PartRoute + ": 0.0.0.0/0", PartRoute + ": 192.0.2.0/24"}},
		{"IPv6 address", func(p *place) { p.pod.ip(p.t, "address del fd00:1::2/64 dev eth0") }, []string{PartAddress + ": fd00:1::2/64 on eth0"}},
		{"default route", func(p *place) { p.pod.ip(p.t, "route del default") }, []string{PartRoute + ": 0.0.0.0/0 (the default route)"}},
		{"IPv6 default route", func(p *place) { p.pod.ip(p.t, "-6 route del default") }, []string{PartRoute + ": ::/0"}},
		{"route", func(p *place) { p.pod.ip(p.t, "route del 192.0.2.0/24") }, []string{PartRoute + ": 192.0.2.0/24 via 10.1.0.7, have none"}},
		{"other gateway", func(p *place) { p.pod.ip(p.t, "route replace 192.0.2.0/24 via 10.1.0.8") }, []string{PartRoute + ": one via 10.1.0.8"}},
		{"host's end down", func(p *place) { p.node.ip(p.t, "link set veth0 down") }, []string{PartHostEnd + ": veth0, which is down"}},
		{"no port", func(p *place) { p.node.ip(p.t, "link set veth0 nomaster") }, []string{PartHostEnd + ": port of cni0"}},
		{"hairpin", func(p *place) { p.node.ip(p.t, "link set veth0 type bridge_slave hairpin off") }, []string{PartHostEnd + ": hairpin mode of veth0"}},
		{"bridge down", func(p *place) { p.node.ip(p.t, "link set cni0 down\nlink set cni0 up\nlink set cni0 down") }, []string{PartBridge + ": cni0, which is down", PartBridge + ": fd00:1::1"}},
		{"bridge gone", func(p *place) { p.node.ip(p.t, "link del cni0") },
			[]string{PartHostEnd + ": cni0 on the node", PartBridge + ": 10.1.0.1", PartBridge + ": fd00:1::1"}},
		{"gateway's address", func(p *place) { p.node.ip(p.t, "address del 10.1.0.1/16 dev cni0") }, []string{PartBridge + ": 10.1.0.1 on cni0"}},
		{"way to the pod", func(p *place) {
			p.node.ip(p.t, "link add other type bridge\nlink set other up\naddress add 10.1.0.9/32 dev other\nroute add 10.1.0.2/32 dev other")
		}, []string{PartWay + ": another interface: other"}},
		{"ip_forward", func(p *place) { p.node.sysctl(p.t, "net/ipv4/ip_forward", "0") },
			[]string{PartSysctl + ": net/ipv4/ip_forward", PartSysctl + ": net/ipv4/conf/cni0/forwarding"}},
		{"forwarding of the device", func(p *place) { p.node.sysctl(p.t, "net/ipv4/conf/cni0/forwarding", "0") }, []string{PartSysctl + ": conf/cni0/forwarding"}},
		{"IPv6 forwarding", func(p *place) { p.node.sysctl(p.t, "net/ipv6/conf/all/forwarding", "0") }, []string{PartSysctl + ": ipv6"}},
		{"table", func(p *place) {
			p.subject.Table = func(context.Context) ([]string, error) { return []string{"hostPort tcp *:80"}, nil }
		}, []string{PartTable + ": hostPort tcp *:80"}},
		{"table that cannot be read", func(p *place) {
			p.subject.Table = func(context.Context) ([]string, error) { return nil, errors.New("no permission") }
		}, []string{PartUnknown + ": no permission"}},
		{"result", func(p *place) { p.subject.Attachment.Result = json.RawMessage(`{"cniVersion":"9"}`) }, []string{PartUnknown + ": the result of ADD"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := onBridge(t)
			p.amiss("before")
			c.drift(p)
			p.amiss(c.name, c.want...)
		})
	}
}

// What the mends say puts it right.
func TestMendsWork(t *testing.T) {
	for _, drift := range []func(p *place){
		func(p *place) { p.pod.ip(p.t, "address del fd00:1::2/64 dev eth0") },
		func(p *place) { p.pod.ip(p.t, "route del 192.0.2.0/24") },
		func(p *place) { p.pod.ip(p.t, "route del default") },
		func(p *place) { p.node.ip(p.t, "link set veth0 down") },
		func(p *place) { p.node.ip(p.t, "link set veth0 nomaster") },
		func(p *place) { p.node.ip(p.t, "link set cni0 down") },
		func(p *place) { p.node.ip(p.t, "address del 10.1.0.1/16 dev cni0") },
		func(p *place) { p.node.sysctl(p.t, "net/ipv4/conf/cni0/forwarding", "0") },
	} {
		p := onBridge(t)
		p.subject.Hairpin = false // bridge(8) may not be there
		drift(p)
		for range 5 {
			for _, f := range p.inspect() {
				if f.OK {
					continue
				}
				command, _, _ := strings.Cut(f.Mend, "\n")
				p.node.do(t, func() error {
					out, err := exec.Command("sh", "-c", command).CombinedOutput()
					if err != nil {
						return fmt.Errorf("%s: %w: %s", command, err, out)
					}
					return nil
				})
			}
		}
		p.amiss("after the mends")
	}
}

// Networks of other kinds, as their plugins leave them, are as they should be; what
// they share with a bridge is missed there as well.
func TestOtherNetworks(t *testing.T) {
	for _, c := range []struct {
		name         string
		conf, result string
		make         func(p *place)
		drift        func(p *place)
		want         []string // after the drift
	}{
		{"ptp", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}`,
			`{"cniVersion":"1.0.0","interfaces":[{"name":"veth0"},{"name":"eth0","sandbox":"PATH"}],
			"ips":[{"interface":1,"address":"10.2.0.2/24","gateway":"10.2.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}`,
			func(p *place) {
				plug(t, p.node, p.pod)
				p.node.ip(p.t, "address add 10.2.0.1/32 dev veth0\nroute add 10.2.0.2/32 dev veth0")
				p.pod.ip(p.t, "address add 10.2.0.2/24 dev eth0\nroute add default via 10.2.0.1")
				p.node.sysctl(p.t, "net/ipv4/ip_forward", "1")
			}, func(p *place) { p.node.ip(p.t, "route del 10.2.0.2/32") }, []string{PartWay + ": the node has no route"}},
		{"flannel, executed", `{"cniVersion":"0.3.1","name":"cbr0","plugins":[{"type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}]}`,
			bridgeResult, func(p *place) { *p = *onBridge(t); p.subject.Hairpin = false },
			func(p *place) {
				p.node.ip(p.t, "link set veth0 type bridge_slave hairpin off\naddress del 10.1.0.1/16 dev cni0")
			},
			[]string{PartHostEnd + ": hairpin mode", PartBridge + ": 10.1.0.1 on cni0"}},
		{"bridge without gateway", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","bridge":"cni0"}]}`,
			bridgeResult, func(p *place) {
				*p = *onBridge(t)
				p.node.ip(p.t, "address flush dev cni0")
				p.node.sysctl(p.t, "net/ipv4/ip_forward", "0")
			}, func(p *place) { p.pod.ip(p.t, "route del default") }, []string{PartRoute + ": 0.0.0.0/0"}},
		{"IPv6 only", bridgeConf, `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"veth0"},{"name":"eth0","sandbox":"PATH"}],
			"ips":[{"interface":2,"address":"fd00:1::2/64","gateway":"fd00:1::1"}],"routes":[{"dst":"::/0","gw":"fd00:1::1"}]}`,
			func(p *place) {
				*p = *onBridge(t)
				p.node.ip(p.t, "address del 10.1.0.1/16 dev cni0")
				p.pod.ip(p.t, "address del 10.1.0.2/16 dev eth0")
				p.node.sysctl(p.t, "net/ipv4/ip_forward", "0")
			}, func(p *place) { p.node.sysctl(p.t, "net/ipv6/conf/all/forwarding", "0") }, []string{PartSysctl + ": ipv6"}},
		{"macvlan", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"macvlan","master":"up0"}]}`,
			`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"PATH"}],
			"ips":[{"interface":0,"address":"10.3.0.2/24","gateway":"10.3.0.1"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.3.0.1"}]}`,
			func(p *place) {
				p.node.ip(p.t, "link add up0 type veth peer name up1\nlink set up0 up\nlink set up1 up\nlink add mv0 link up0 type macvlan")
				p.node.ip(p.t, "link set mv0 netns "+p.pod.path()+" name eth0")
				p.pod.ip(p.t, "link set eth0 up\naddress add 10.3.0.2/24 dev eth0\nroute add default via 10.3.0.1")
			}, func(p *place) { p.pod.ip(p.t, "link del eth0") }, []string{PartInterface + ": eth0"}},
		{"host-device without addresses", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"host-device"}]}`,
			`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"PATH"}],"dns":{}}`,
			func(p *place) { plug(t, p.node, p.pod) }, func(p *place) { p.node.ip(p.t, "link set veth0 down") }, []string{PartHostEnd + ": veth0"}},
		{"routes in another table, as sbr's", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"unknown"},{"type":"sbr"}]}`,
			`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"PATH"}],"ips":[{"interface":0,"address":"10.4.0.2/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.4.0.1"}]}`,
			func(p *place) {
				plug(t, p.node, p.pod)
				p.pod.ip(p.t, "address add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1 table 100")
			}, func(p *place) { p.pod.ip(p.t, "route flush table 100") }, []string{PartRoute + ": 0.0.0.0/0"}},
		{"several interfaces", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"unknown"}]}`,
			`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"PATH"},{"name":"net1","sandbox":"PATH"},{"name":"x","sandbox":"/run/netns/of-a-vm"}],
			"ips":[{"interface":0,"address":"10.5.0.2/24"},{"interface":1,"address":"10.6.0.2/24"},{"interface":2,"address":"10.7.0.2/24"},{"address":"10.8.0.2/24"}]}`,
			func(p *place) {
				plug(t, p.node, p.pod)
				p.pod.ip(p.t, "link add net1 type veth peer name net2\nlink set net1 up\naddress add 10.5.0.2/24 dev eth0\naddress add 10.6.0.2/24 dev net1\naddress add 10.8.0.2/24 dev net1")
			}, func(p *place) { p.pod.ip(p.t, "address del 10.6.0.2/24 dev net1\naddress add 10.6.0.2/24 dev eth0") }, []string{PartAddress + ": 10.6.0.2/24 on net1"}},
		{"result of CNI 0.2.0", `{"cniVersion":"0.2.0","name":"n","type":"unknown"}`,
			`{"cniVersion":"0.2.0","ip4":{"ip":"10.9.0.2/24","gateway":"10.9.0.1","routes":[{"dst":"0.0.0.0/0"}]}}`,
			func(p *place) {
				plug(t, p.node, p.pod)
				p.pod.ip(p.t, "address add 10.9.0.2/24 dev eth0\nroute add default via 10.9.0.1")
			}, func(p *place) { p.pod.ip(p.t, "address del 10.9.0.2/24 dev eth0") }, []string{PartAddress + ": 10.9.0.2/24", PartRoute + ": 0.0.0.0/0"}},
		{"no configuration, as of an older adopted pod", ``, bridgeResult,
			func(p *place) { *p = *onBridge(t); p.subject.Hairpin = false }, func(p *place) { p.node.ip(p.t, "link set veth0 nomaster") },
			[]string{PartHostEnd + ": port of cni0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			c.make(p)
			p.t = t
			p.attached(c.conf, c.result)
			p.amiss("as it was made")
			c.drift(p)
			p.amiss("afterwards", c.want...)
		})
	}
}

// It takes milliseconds, ends with its context, and leaves the namespaces as they are.
func TestInspectIsQuickAndBounded(t *testing.T) {
	p := onBridge(t)
	const rounds, most = 30, 250 * time.Millisecond // a loaded machine
	began := time.Now()
	for range rounds {
		p.amiss("again")
	}
	each := time.Since(began) / rounds
	t.Logf("%v each", each)
	if each > most {
		t.Errorf("it takes %v, want %v", each, most)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	var findings []Finding
	p.node.do(t, func() error { findings = Inspect(over, p.subject); return nil })
	if OK(findings) {
		t.Errorf("a context that has ended: %v", findings)
	}
}

// A command can be given to a shell as it is, whatever an interface is called.
func TestCommandsAreQuoted(t *testing.T) {
	for text, want := range map[string]string{
		"eth0": "eth0", "eth0.5": "eth0.5", "/proc/7/fd/8": "/proc/7/fd/8", "fd00::2/64": "fd00::2/64",
		"": "''", "a;reboot": "'a;reboot'", "$(x)": "'$(x)'", "it's": `'it'\''s'`, "ä": "'ä'",
	} {
		if got := word(text); got != want {
			t.Errorf("%q became %s, want %s", text, got, want)
		}
	}
	for netns, want := range map[string]string{
		"/var/run/netns/cni-1": "ip -n cni-1 link set 'a b' up", "/proc/7/ns/net": "nsenter --net=/proc/7/ns/net ip link set 'a b' up",
	} {
		i := &inspection{netns: netns}
		if got := i.inside("link set %s up", "a b"); got != want {
			t.Errorf("in %s: %s, want %s", netns, got, want)
		}
	}
}
