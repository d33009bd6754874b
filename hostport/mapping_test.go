package hostport

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/hostport/kernel"
)

var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestParseMappings(t *testing.T) {
	addr := netip.MustParseAddr
	for _, test := range []struct {
		name string
		in   []Request
		want []Mapping
		err  string
	}{
		{"none", nil, []Mapping{}, ""},
		{"hostPort 0 is ignored, whatever else", []Request{{"junk", "junk", 0, -1}}, []Mapping{}, ""},
		{"defaults", []Request{{"", "", 80, 8080}}, []Mapping{{TCP, netip.Addr{}, 80, 8080}}, ""},
		{"CRI's names", []Request{{"UDP", "", 1, 65535}, {"SCTP", "", 65535, 1}},
			[]Mapping{{SCTP, netip.Addr{}, 65535, 1}, {UDP, netip.Addr{}, 1, 65535}}, ""},
		{"wildcards", []Request{{"tcp", "0.0.0.0", 80, 80}, {"tcp", "::", 80, 80}},
			[]Mapping{{TCP, addr("0.0.0.0"), 80, 80}, {TCP, addr("::"), 80, 80}}, ""},
		{"IPv4 in IPv6", []Request{{"tcp", "::ffff:192.0.2.1", 80, 80}}, []Mapping{{TCP, addr("192.0.2.1"), 80, 80}}, ""},
		{"IPv6 loopback", []Request{{"tcp", "::1", 80, 80}}, []Mapping{{TCP, addr("::1"), 80, 80}}, ""},
		{"repetition", []Request{{"tcp", "", 80, 80}, {"TCP", "", 80, 80}}, []Mapping{{TCP, netip.Addr{}, 80, 80}}, ""},
		{"one port, two protocols", []Request{{"tcp", "", 53, 53}, {"udp", "", 53, 54}},
			[]Mapping{{TCP, netip.Addr{}, 53, 53}, {UDP, netip.Addr{}, 53, 54}}, ""},
		{"two addresses", []Request{{"tcp", "192.0.2.1", 80, 80}, {"tcp", "192.0.2.2", 80, 81}},
			[]Mapping{{TCP, addr("192.0.2.1"), 80, 80}, {TCP, addr("192.0.2.2"), 80, 81}}, ""},
		{"two families", []Request{{"tcp", "0.0.0.0", 80, 80}, {"tcp", "2001:db8::1", 80, 81}},
			[]Mapping{{TCP, addr("0.0.0.0"), 80, 80}, {TCP, addr("2001:db8::1"), 80, 81}}, ""},

		{"negative", []Request{{"tcp", "", -1, 80}}, nil, "hostPort must be between"},
		{"65536", []Request{{"tcp", "", 65536, 80}}, nil, "hostPort must be between"},
		{"container port 0", []Request{{"tcp", "", 80, 0}}, nil, "containerPort must be between"},
		{"container port 65536", []Request{{"tcp", "", 80, 65536}}, nil, "containerPort must be between"},
		{"protocol", []Request{{"icmp", "", 80, 80}}, nil, `"icmp"`},
		{"address", []Request{{"tcp", "localhost", 80, 80}}, nil, "not an IP address"},
		{"zone", []Request{{"tcp", "fe80::1%eth0", 80, 80}}, nil, "zone"},
		{"multicast", []Request{{"tcp", "224.0.0.1", 80, 80}}, nil, "not of many"},
		{"broadcast", []Request{{"tcp", "255.255.255.255", 80, 80}}, nil, "not of many"},
		{"two targets", []Request{{"tcp", "", 80, 80}, {"tcp", "", 80, 81}}, nil, "container port 80, and tcp *:80 to container port 81"},
		{"wildcard and address", []Request{{"tcp", "192.0.2.1", 80, 80}, {"tcp", "0.0.0.0", 80, 81}}, nil, "tcp 192.0.2.1:80 to container port 80"},
		{"both wildcard and address", []Request{{"tcp", "2001:db8::1", 80, 80}, {"tcp", "", 80, 81}}, nil, "tcp [2001:db8::1]:80"},
		{"one of two is wrong", []Request{{"tcp", "", 80, 80}, {"tcp", "x", 81, 81}}, nil, "port mapping 1"},
		{"too many", many(MaxMappings + 1), nil, "more than 10000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseMappings(test.in)
			if (test.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if diff := cmp.Diff(test.want, got, compareAddr); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func many(count int) []Request {
	requests := make([]Request, count)
	for i := range requests {
		requests[i] = Request{"tcp", "", int32(i + 1), 80}
	}
	return requests
}

func TestParseManyMappings(t *testing.T) {
	got, err := ParseMappings(many(MaxMappings))
	if err != nil || len(got) != MaxMappings {
		t.Errorf("%d mappings, %v", len(got), err)
	}
	wrong := many(MaxMappings)
	for i := range wrong {
		wrong[i].ContainerPort = -1
	}
	if _, err := ParseMappings(wrong); err == nil || len(err.Error()) > 2000 {
		t.Errorf("an error of %d bytes", len(fmt.Sprint(err)))
	}
}

// FuzzParseMappings throws requests at the parser, and what it lets through at
// what puts it into the kernel's form.
func FuzzParseMappings(f *testing.F) {
	f.Add("tcp", "", int32(80), int32(80), "UDP", "::1", int32(-1), int32(65536))
	f.Add("sctp", "0.0.0.0", int32(65535), int32(1), "SCTP", "10.0.0.1", int32(65535), int32(2))
	f.Add("tcp", "fe80::1%0", int32(1), int32(1), "\x00", "::ffff:1.2.3.4", int32(0), int32(0))
	f.Fuzz(func(t *testing.T, p1, ip1 string, h1, c1 int32, p2, ip2 string, h2, c2 int32) {
		requests := []Request{{p1, ip1, h1, c1}, {p2, ip2, h2, c2}}
		mappings, err := ParseMappings(requests)
		if err != nil {
			if len(mappings) != 0 {
				t.Fatalf("both %v and %v", mappings, err)
			}
			return
		}
		if len(mappings) > 2 || !slices.IsSortedFunc(mappings, compareMappings) {
			t.Fatalf("%v out of %v", mappings, requests)
		}
		pod := Pod{Namespace: p1, Name: ip2, Mappings: mappings, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}
		needed, err := needOf(pod, facts{})
		if err != nil {
			t.Fatalf("a pod of both families can't have %v: %v", mappings, err)
		}
		seen := make(map[kernel.Key]string)
		for _, e := range append(needed.own, needed.shared...) {
			if before, ok := seen[e.Key]; ok && before != e.Value {
				t.Fatalf("%v lead one key to two targets", mappings)
			}
			seen[e.Key] = e.Value
			if len(e.Comment) > maxComment {
				t.Fatalf("a comment of %d bytes", len(e.Comment))
			}
		}
	})
}

func TestNeedsAddresses(t *testing.T) {
	for _, test := range []struct {
		ips, mappings []string
		err           string
	}{
		{[]string{"10.0.0.1"}, []string{"tcp 80:80"}, ""},
		{[]string{"fd00::1"}, []string{"tcp 80:80"}, ""},
		{[]string{"10.0.0.1"}, []string{"tcp :: 80:80"}, "tcp [::]:80"},
		{[]string{"fd00::1"}, []string{"tcp 80:80", "tcp 127.0.0.1 81:80"}, "tcp 127.0.0.1:81"},
		{nil, []string{"tcp 80:80"}, "no address"},
	} {
		_, err := needOf(testPod(t, "web", test.ips, test.mappings...), facts{})
		if (test.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%v with %v: %v, want %q", test.mappings, test.ips, err, test.err)
		}
	}
}
