package hostport

import (
	"context"
	"net/netip"
	"strings"
	"testing"
)

// What somebody took out of the table is named, for the pod that it belongs to alone;
// a Manager that was told of no pod finds the same.
func TestLacking(t *testing.T) {
	ns := nftNetNS(t)
	m := newManagerFor(t, ns)
	web, db := testPod(t, "web", []string{"10.1.0.2", "fd00:1::2"}, "tcp 80:8080", "udp 127.0.0.1 53:53"), testPod(t, "db", []string{"10.1.0.3"}, "tcp 90:90")
	web.Masquerade = []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")}
	foreign := testPod(t, "foreign", []string{"10.1.0.4"}, "tcp 91:91")
	foreign.Foreign = true
	all := []Pod{web, db, foreign}
	if err := m.Sync(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		for _, asked := range []*Manager{m, newManagerFor(t, ns)} {
			for _, pod := range all {
				got, err := asked.Lacking(t.Context(), pod)
				if said := strings.Join(got, ", "); err != nil || (said != "") != (want[pod.Name] != "") || !strings.Contains(said, want[pod.Name]) {
					t.Errorf("%s: %s lacks %q, %v; want %q", when, pod.Name, said, err, want[pod.Name])
				}
			}
		}
	}
	check("at first", nil)
	ns.nft(t, "delete element inet crinet ports4 { tcp . 80 }")
	check("one hostPort", map[string]string{"web": "hostPort tcp 0.0.0.0:80"})
	ns.nft(t, "delete element inet crinet masquerade4 { 10.1.0.2 }")
	check("masquerade", map[string]string{"web": "masquerade of 10.1.0.2"})
	ns.nft(t, "add element inet crinet ports4 { tcp . 80 : 10.1.0.9 . 8080 }")
	check("another's", map[string]string{"web": "hostPort tcp 0.0.0.0:80"})
	ns.nft(t, "flush chain inet crinet hostports")
	check("a chain", map[string]string{"web": "chain hostports", "db": "chain hostports"})
	ns.nft(t, "delete table inet crinet")
	check("the table", map[string]string{"web": "does not exist", "db": "does not exist"})

	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Lacking(over, web); err == nil {
		t.Error("a context that has ended is no error")
	}
}
