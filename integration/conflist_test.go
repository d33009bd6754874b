package integration_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// shipped is a conflist as a network's project ships it. standIns are its plugins
// that cannot be installed here, each with the configuration of a reference plugin
// that does its work.
type shipped struct {
	file, conf string
	network    string
	standIns   map[string]string
	subnet     string
	pluginKeys []string // of the first plugin, which it must get
	extraFiles map[string]string
}

// Written after the projects' documentation.
var shippedNetworks = map[string]shipped{
	"flannel": {
		file: "10-flannel.conflist", network: "cbr0", subnet: "10.53.0.0/16",
		conf: `{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
`,
		standIns: map[string]string{"flannel": `{"type": "bridge", "bridge": "cni0", "mtu": 1450, "hairpinMode": true, "isDefaultGateway": true,
			"ipMasq": false, "ipam": {"type": "host-local", "subnet": "10.53.0.0/16", "routes": [{"dst": "10.53.0.0/16"}]}}`},
		pluginKeys: []string{"delegate"},
	},
	"calico": {
		file: "10-calico.conflist", network: "k8s-pod-network", subnet: "10.54.0.0/16",
		conf: `{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "log_level": "info",
      "log_file_path": "/var/log/calico/cni/cni.log",
      "datastore_type": "kubernetes",
      "nodename": "node-1",
      "mtu": 0,
      "ipam": {
        "type": "calico-ipam"
      },
      "policy": {
        "type": "k8s"
      },
      "kubernetes": {
        "kubeconfig": "/etc/cni/net.d/calico-kubeconfig"
      }
    },
    {
      "type": "portmap",
      "snat": true,
      "capabilities": {"portMappings": true}
    },
    {
      "type": "bandwidth",
      "capabilities": {"bandwidth": true}
    }
  ]
}
`,
		standIns: map[string]string{
			"calico":      `{"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "subnet": "10.54.0.0/16"}}`,
			"calico-ipam": ``,
		},
		pluginKeys: []string{"datastore_type", "nodename", "policy", "kubernetes", "ipam", "log_file_path"},
		extraFiles: map[string]string{"calico-kubeconfig": "apiVersion: v1\nkind: Config\n", "calico-tls/ca.crt": "certificate"},
	},
	"weave": {
		file: "10-weave.conflist", network: "weave", subnet: "10.55.0.0/16",
		conf: `{
    "cniVersion": "0.3.0",
    "name": "weave",
    "plugins": [
        {
            "name": "weave",
            "type": "weave-net",
            "hairpinMode": true
        },
        {
            "type": "portmap",
            "capabilities": {"portMappings": true},
            "snat": true
        }
    ]
}
`,
		standIns: map[string]string{"weave-net": `{"type": "bridge", "bridge": "weave", "hairpinMode": true, "isDefaultGateway": true,
			"ipam": {"type": "host-local", "subnet": "10.55.0.0/16"}}`},
		pluginKeys: []string{"hairpinMode"},
	},
}

// Configurations of networks that have agents of their own are loaded, selected
// and run as they are shipped, with the other files that lie beside them.
func TestShippedNetworks(t *testing.T) {
	t.Parallel()
	for name, network := range shippedNetworks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			for plugin, delegate := range network.standIns {
				n.ok(n.InstallPlugin(plugin, kit.Program("testplugin")))
				standIn := map[string]any{"dir": "/run/record-" + network.network}
				if delegate != "" {
					standIn["delegate"] = json.RawMessage(delegate)
				}
				text, err := json.Marshal(standIn)
				n.ok(err)
				n.ok(n.WriteFile("/run/standin/"+plugin+".json", string(text)))
			}
			for file, text := range network.extraFiles {
				n.ok(n.WriteConf(file, text))
			}
			n.ok(n.WriteConf(network.file, network.conf))
			n.ok(n.StartContainerd(n.ctx))
			n.ok(n.StartCrinetd(n.ctx, cniFlags...))
			client := n.client(node.CrinetdSocket)
			n.awaitNetwork(client, true)
			if s := n.status(); s.Network != network.network || len(s.Problems) != 0 {
				t.Errorf("selected is %s, problems are %+v", s.Network, s.Problems)
			}
			pods := []*node.Pod{n.runPod(client, "first"), n.runPod(client, "second")}
			for _, pod := range pods {
				n.checkAddresses(pod, network.subnet)
			}
			for _, pod := range pods {
				n.ok(pod.StopAndRemove(n.ctx))
			}
			n.checkShipped(network, len(pods))
			n.noLeftovers()
		})
	}
}

// checkShipped looks at how the network's own plugin was called.
func (n *testNode) checkShipped(network shipped, pods int) {
	n.t.Helper()
	adds, dels := n.recorded(network.network, "ADD"), n.recorded(network.network, "DEL")
	if len(adds) != pods || len(dels) != pods {
		n.t.Errorf("%d calls of ADD and %d of DEL for %d pods", len(adds), len(dels), pods)
	}
	for _, call := range append(adds, dels...) {
		var conf map[string]any
		n.ok(json.Unmarshal(call.Config, &conf))
		if conf["name"] != network.network || !strings.HasPrefix(fmt.Sprint(conf["cniVersion"]), "0.3.") {
			n.t.Errorf("%s: name %v, cniVersion %v", call.Verb, conf["name"], conf["cniVersion"])
		}
		for _, key := range network.pluginKeys {
			if _, ok := conf[key]; !ok {
				n.t.Errorf("%s did not get the key %s: %s", call.Verb, key, call.Config)
			}
		}
	}
}
