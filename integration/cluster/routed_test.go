package cluster_test

import (
	"os"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// kindnetConf is a network like kindnet's: ptp, and a route to each other node.
const kindnetConf = `{
	"cniVersion": "0.4.0",
	"name": "kindnet",
	"plugins": [{
		"type": "ptp",
		"ipMasq": false,
		"capabilities": {"ipRanges": true},
		"ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks", "routes": [{"dst": "0.0.0.0/0"}]}
	}, {
		"type": "portmap",
		"capabilities": {"portMappings": true}
	}]
}`

// calicoConf names routedPlugin, which stands in for Calico's.
const calicoConf = `{
	"cniVersion": "0.3.1",
	"name": "k8s-pod-network",
	"plugins": [{
		"type": "calico",
		"log_level": "info",
		"capabilities": {"ipRanges": true},
		"ipam": {"type": "host-local"}
	}, {
		"type": "portmap",
		"snat": true,
		"capabilities": {"portMappings": true}
	}]
}`

// routedPlugin connects pods as Calico does, whose module is not to be had: a veth
// without a bridge, one route to each pod, and a link-local gateway that nobody
// has and for which the node's end answers. Its result names the node's end alone,
// and neither a gateway nor the pod's interface.
const routedPlugin = `#!/bin/bash
set -e
conf=$(cat)
host=cali${CNI_CONTAINERID:0:11}
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"0.3.1","supportedVersions":["0.3.0","0.3.1"]}' ;;
ADD)
	addr=$(/opt/cni/bin/host-local <<<"$conf" | grep -o '"address": *"[0-9./]*"' | cut -d'"' -f4)
	addr=${addr%/*}
	ip link add "$host" type veth peer name "$CNI_IFNAME" netns "${CNI_NETNS##*/}"
	nsenter --net="$CNI_NETNS" bash -e -c "
		ip addr add $addr/32 dev $CNI_IFNAME
		ip link set $CNI_IFNAME up
		ip route add 169.254.1.1 dev $CNI_IFNAME scope link
		ip route add default via 169.254.1.1"
	echo 1 >"/proc/sys/net/ipv4/conf/$host/proxy_arp"
	ip link set "$host" up
	ip route add "$addr/32" dev "$host"
	echo '{"cniVersion":"0.3.1","interfaces":[{"name":"'"$host"'"}],"ips":[{"version":"4","address":"'"$addr"'/32"}],"dns":{}}'
	;;
DEL)
	/opt/cni/bin/host-local <<<"$conf"
	ip link del "$host" 2>/dev/null || true
	;;
esac
`

// Two nodes whose pods hang on no bridge, as kindnet and Calico make them: pods
// reach each other across nodes with their own addresses, Services and hostPorts
// answer, and nothing is left.
func TestRoutedNetworks(t *testing.T) {
	t.Parallel()
	const file = "10-pods.conflist"
	c := newCluster(t, cluster.Options{Nodes: 2, NoDNS: true, Routed: true, ProxyMode: "nftables",
		Network: map[string]string{file: kindnetConf},
		Prepare: func(n *node.Node) error {
			if err := n.WriteFile(node.BinDir+"/calico", routedPlugin); err != nil {
				return err
			}
			return os.Chmod(n.Path(node.BinDir+"/calico"), 0o755)
		}})
	for _, network := range []struct{ name, conf string }{{"kindnet", kindnetConf}, {"k8s-pod-network", calicoConf}} {
		clean := t.Run(network.name, func(t *testing.T) {
			c := c.in(t)
			for _, m := range c.Members {
				c.ok(m.WriteConf(file, network.conf))
			}
			// The file is read again within a moment; pods of the wrong network fail the test.
			for _, m := range c.Members {
				c.await(network.name+" is selected", func() error {
					_, err := m.Run(c.ctx, "sh", "-c", kit.Crinet("crinetctl")+" status | grep -q "+network.name)
					return err
				})
			}
			c.apply(spread, "web", 8080)
			c.apply(`apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: tcp, port: 81, targetPort: 80}, {name: udp, port: 81, targetPort: 80, protocol: UDP}]
`)
			pods := c.pods("web", 2)
			service := c.clusterIP("web")
			for i, from := range pods {
				to, place := pods[1-i], c.place(from)
				c.answers(place, to.Status.PodIP, 80, to.Metadata.Name)
				if _, client, err := ask(c.ctx, place, "tcp", to.Status.PodIP, 80); err != nil || !strings.HasPrefix(client, from.Status.PodIP+":") {
					t.Errorf("pod %s sees its client as %s: %v, want %s", to.Metadata.Name, client, err, from.Status.PodIP)
				}
				m := c.Member(from.Spec.NodeName)
				c.answers(place, service, 81, "web-")
				c.answers(m.Place, from.Status.PodIP, 80, from.Metadata.Name)
				c.answers(m.Outside, m.IPv4(), 8080, from.Metadata.Name)
				c.answers(place, c.Member(to.Spec.NodeName).IPv4(), 8080, to.Metadata.Name)
				c.answers(place, m.IPv4(), 8080, from.Metadata.Name)
			}
			for _, m := range c.Members {
				if states := c.podStates(m); len(states) != 1 || states[0].Network != network.name {
					t.Errorf("crinetctl on %s lists %+v, want one pod on %s", m.Name, states, network.name)
				}
				c.agree(m)
			}
			c.kubectl("delete", "daemonset/web", "service/web")
			c.gone("web")
			for _, m := range c.Members {
				if left := c.agree(m); left != 0 {
					t.Errorf("%d pods are left on %s", left, m.Name)
				}
			}
		})
		if !clean { // the next network would have its pods
			return
		}
	}
}
