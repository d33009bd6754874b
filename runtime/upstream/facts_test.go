package upstream

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// loadedByGoCNI is info.cniconfig: go-cni's ConfigResult has no JSON names.
const loadedByGoCNI = `{"PluginDirs":["/opt/cni/bin"],"PluginConfDir":"/etc/cni/net.d","PluginMaxConfNum":1,"Prefix":"eth","Networks":[
 {"Config":{"Name":"cni-loopback","CNIVersion":"0.3.1","Plugins":[{"Network":{"type":"loopback","ipam":{},"dns":{}},"Source":"{}"}],"Source":"{}"},"IFName":"lo"},
 {"Config":{"Name":"crinet","CNIVersion":"1.0.0","Plugins":[{"Network":{"type":"crinet","ipam":{},"dns":{}},"Source":"{}"}],"Source":"{}"},"IFName":"eth0"}]}`

func networkNotReady(message string) *runtimeapi.RuntimeStatus {
	return &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true},
		{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: message},
	}}
}

func TestFactsOfContainerd(t *testing.T) {
	const notInit = "Network plugin returns error: cni plugin not initialized"
	for _, c := range []struct {
		name string
		resp *runtimeapi.StatusResponse
		want Facts
	}{
		{"1.6: one bin dir, no internal loopback", &runtimeapi.StatusResponse{Info: map[string]string{
			"config": `{"containerd":{"snapshotter":"overlayfs","defaultRuntimeName":"runc","runtimes":{"runc":{"runtimeType":"io.containerd.runc.v2","options":{},"cniConfDir":"","cniMaxConfNum":0}}},
				"cni":{"binDir":"/usr/lib/cni","confDir":"/etc/cni/net.d","maxConfNum":1,"confTemplate":"","ipPref":""},"containerdRootDir":"/var/lib/containerd"}`,
			"cniconfig": loadedByGoCNI, "golang": `"go1.19.8"`, "lastCNILoadStatus": "OK", "lastCNILoadStatus.default": "OK",
		}}, Facts{Told: true, ConfDir: "/etc/cni/net.d", BinDirs: []string{"/usr/lib/cni"}, MaxConfNum: 1, Handlers: map[string]string{}, Loaded: []string{"crinet"}}},

		{"1.7: handlers with conf dirs of their own", &runtimeapi.StatusResponse{Info: map[string]string{
			"config": `{"containerd":{"runtimes":{"runc":{"cniConfDir":"","cniMaxConfNum":0},"kata":{"cniConfDir":"/etc/cni/kata","cniMaxConfNum":2,"sandboxMode":"podsandbox"}}},
				"cni":{"binDir":"/opt/cni/bin","confDir":"/etc/cni/net.d","maxConfNum":0,"setupSerially":false,"confTemplate":"","ipPref":""}}`,
			"cniconfig": loadedByGoCNI, "lastCNILoadStatus": "OK",
		}}, Facts{Told: true, ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, Handlers: map[string]string{"kata": "/etc/cni/kata"},
			HandlerMaxConfNum: map[string]int{"kata": 2}, Loaded: []string{"crinet"}}},

		{"2.1: both forms of the bin dirs, internal loopback", &runtimeapi.StatusResponse{Info: map[string]string{
			"config":    `{"containerd":{"runtimes":{}},"cni":{"binDir":"/old","binDirs":["/opt/cni/bin","/usr/lib/cni"],"confDir":"/etc/cni/crinet","maxConfNum":1,"useInternalLoopback":true}}`,
			"cniconfig": `{"Networks":[{"Config":{"Name":"crinet"},"IFName":"eth0"},{"Config":{"Name":"other"},"IFName":"eth1"}]}`, "lastCNILoadStatus": "OK",
		}}, Facts{Told: true, ConfDir: "/etc/cni/crinet", BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}, MaxConfNum: 1, InternalLoopback: true,
			Handlers: map[string]string{}, Loaded: []string{"crinet", "other"}}},

		{"2.4: nothing loaded", &runtimeapi.StatusResponse{Status: networkNotReady(notInit), Info: map[string]string{
			"config":            `{"containerd":{"runtimes":null},"cni":{"binDirs":["/opt/cni/bin"],"confDir":"/etc/cni/net.d","maxConfNum":1}}`,
			"cniconfig":         `{"Networks":[{"Config":{"Name":"cni-loopback"},"IFName":"lo"}]}`,
			"lastCNILoadStatus": "cni config load failed: no network config found in /etc/cni/net.d: cni plugin not initialized: failed to load cni config",
		}}, Facts{Told: true, ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, MaxConfNum: 1, Handlers: map[string]string{},
			LoadError: "cni config load failed: no network config found in /etc/cni/net.d: cni plugin not initialized: failed to load cni config"}},

		// Row A23: 1.6 lost its watch of the conf dir; its last load had worked.
		{"1.6: not initialized, last load OK", &runtimeapi.StatusResponse{Status: networkNotReady(notInit), Info: map[string]string{
			"config":    `{"cni":{"binDir":"/opt/cni/bin","confDir":"/etc/cni/net.d","maxConfNum":1}}`,
			"cniconfig": `{"Networks":null}`, "lastCNILoadStatus": "OK",
		}}, Facts{Told: true, ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, MaxConfNum: 1, Handlers: map[string]string{}, LoadError: notInit}},

		// What crinet's own STATUS says is not the runtime's trouble with loading.
		{"2.4: the plugin's STATUS fails", &runtimeapi.StatusResponse{
			Status: networkNotReady("Network plugin returns error: crinet: bridge is not ready"), Info: map[string]string{
				"config":    `{"cni":{"binDirs":["/opt/cni/bin"],"confDir":"/etc/cni/net.d","maxConfNum":1}}`,
				"cniconfig": loadedByGoCNI, "lastCNILoadStatus": "OK",
			}}, Facts{Told: true, ConfDir: "/etc/cni/net.d", BinDirs: []string{"/opt/cni/bin"}, MaxConfNum: 1, Handlers: map[string]string{}, Loaded: []string{"crinet"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Name, c.want.Version = "containerd", "v0"
			if diff := cmp.Diff(&c.want, ReadFacts("containerd", "v0", c.resp)); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			if want := len(c.want.Loaded) > 0; c.want.HasLoaded("crinet") != want {
				t.Errorf("HasLoaded(crinet) = %v, want %v", !want, want)
			}
		})
	}
}

// A runtime that tells nothing that crinetd can read is not guessed about.
func TestFactsNotTold(t *testing.T) {
	const config = `{"cni":{"binDirs":["/opt/cni/bin"],"confDir":"/etc/cni/net.d"}}`
	for name, info := range map[string]map[string]string{
		"nothing":             nil,
		"TOML":                {"config": "[crio.network]\nnetwork_dir = \"/etc/cni/net.d/\"\n"},
		"half a config":       {"config": `{"cni":{"confDir":"/etc`, "cniconfig": loadedByGoCNI},
		"another form":        {"config": `{"cni":["/etc/cni/net.d"]}`, "cniconfig": loadedByGoCNI},
		"no conf dir":         {"config": `{"cni":{"binDirs":["/opt/cni/bin"]}}`, "cniconfig": loadedByGoCNI},
		"no list of networks": {"config": config},
		"half a list":         {"config": config, "cniconfig": `{"Networks":[{`},
	} {
		want := &Facts{Name: "x", Version: "1", Handlers: map[string]string{}}
		if diff := cmp.Diff(want, ReadFacts("x", "1", &runtimeapi.StatusResponse{Info: info})); diff != "" {
			t.Errorf("%s: facts (-want +got):\n%s", name, diff)
		}
	}
	if ReadFacts("x", "1", nil).Told {
		t.Error("no response tells something")
	}
}
