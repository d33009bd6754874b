package cluster_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
)

// Clusters of both IP families, and of IPv6 alone: pods have an address of each,
// all of them answer, so does a Service's and a hostPort's, and kubectl forwards
// ports over the families that a client has.
func TestIPFamilies(t *testing.T) {
	t.Parallel()
	for name, families := range map[string][]cluster.Family{
		"dual-stack": {cluster.IPv4, cluster.IPv6},
		"IPv6-only":  {cluster.IPv6},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, cluster.Options{Families: families})
			m := c.Members[0]
			c.apply(web, "web", 1, "", "ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 80, hostPort: 8080, protocol: UDP, name: udp}]")
			c.apply(web, "asker", 1, "", "")
			c.apply(`apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: tcp, port: 81, targetPort: 80}, {name: udp, port: 81, targetPort: 80, protocol: UDP}]
`)
			pod, asker := c.pod("web"), c.place(c.pod("asker"))
			if len(pod.Status.PodIPs) != len(families) {
				t.Fatalf("the pod has the addresses %v, want one of each of %v", pod.Status.PodIPs, families)
			}
			for i, ip := range pod.Status.PodIPs {
				addr, err := netip.ParseAddr(ip.IP)
				c.ok(err)
				if addr.Is6() != (families[i] == cluster.IPv6) {
					t.Errorf("address %d of the pod is %v, want one of IPv%d", i+1, addr, families[i])
				}
				c.answers(asker, ip.IP, 80, "web-")
			}
			for _, address := range strings.Fields(c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
				c.answers(asker, address, 81, "web-")
			}
			for _, family := range families {
				address := map[cluster.Family]string{cluster.IPv4: m.IPv4(), cluster.IPv6: m.IPv6()}[family]
				c.answers(m.Outside, address, 8080, "web-")
				listen := map[cluster.Family]string{cluster.IPv4: "127.0.0.1", cluster.IPv6: "::1"}[family]
				if body := c.forwarded(pod.Metadata.Name, "--address="+listen); !strings.HasPrefix(body, "web-") {
					t.Errorf("through port-forward on %s answers %q, want web", listen, body)
				}
			}
			url := "http://web.default.svc.cluster.local:81/"
			c.await(url+" answers", func() error {
				body, err := c.Kubectl(c.ctx, "exec", "deployment/asker", "--", "/nodetest", "get", url)
				if err == nil && !strings.HasPrefix(body, "web-") {
					err = fmt.Errorf("%s is answered by %q", url, body)
				}
				return err
			})
			c.agree(m)
		})
	}
}
