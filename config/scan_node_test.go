package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestScanForeignIPAM: an ipam.type that is no executable may be a name that the
// plugin gives a meaning itself (azure-vnet has azure-cns). It is a warning.
func TestScanForeignIPAM(t *testing.T) {
	runScanTests(t, []scanTest{
		{"no file", files{"1.conflist": one("azure", "1.0.0", `{"type":"bandwidth","ipam":{"type":"azure-cns"}}`)},
			"1.conflist: azure 1.0.0 bandwidth+azure-cns\n" +
				"warning[azure] conf/1.conflist: IPAM plugin azure-cns is no executable in bin: pods fail unless plugin bandwidth knows that type itself\n"},
		{"a file that is no executable", files{"1.conflist": one("a", "1.0.0", `{"type":"bandwidth","ipam":{"type":"plain"}}`)},
			"1.conflist: a 1.0.0 bandwidth+plain\n" +
				"warning[a] conf/1.conflist: IPAM plugin plain is no executable in bin: pods fail unless plugin bandwidth knows that type itself\n"},
		{"a reference plugin, which executes its type", files{"1.conflist": one("a", "1.0.0", `{"type":"bridge","ipam":{"type":"azure-cns"}}`)},
			"unusable[a] conf/1.conflist: IPAM plugin azure-cns is no executable in bin\n"},
		{"an executable that is no plugin", files{"1.conflist": one("a", "1.0.0", `{"type":"bandwidth","ipam":{"type":"crinet"}}`)},
			"unusable[a] conf/1.conflist: IPAM plugin bin/crinet is crinet's own shim, which is no network's plugin\n"},
	})
}

// TestScanDelegatesToCrinet: a meta plugin that was given crinet's own network
// would call crinet from within crinet, for every pod, until --cni-timeout.
func TestScanDelegatesToCrinet(t *testing.T) {
	back := func(file, name, what string) string {
		return "own[" + name + "] conf/" + file + ": leads back to crinet: plugin bridge delegates to " + what +
			", which would call bridge again for every pod; give it another network\n"
	}
	runScanTests(t, []scanTest{
		{"Multus with the master's list inlined", files{"00-multus.conf": `{"cniVersion":"1.0.0","name":"multus","type":"bridge","delegates":[{"cniVersion":"1.0.0","name":"crinet","plugins":[{"type":"crinet","socket":"/run/crinet/cni.sock"}]}]}`},
			back("00-multus.conf", "multus", "plugin type crinet")},
		{"Multus with the master's file", files{"00-multus.conf": `{"cniVersion":"1.0.0","name":"multus","type":"bridge","clusterNetwork":"/host/etc/cni/net.d/00-crinet.conflist"}`},
			back("00-multus.conf", "multus", "network /host/etc/cni/net.d/00-crinet.conflist")},
		{"Multus with the master's name", files{"00-multus.conf": `{"cniVersion":"1.0.0","name":"multus","type":"bridge","clusterNetwork":"flannel","defaultNetworks":["a","crinet"]}`},
			back("00-multus.conf", "multus", "network crinet")},
		{"a delegate", files{"1.conflist": one("a", "1.0.0", `{"type":"loopback"},{"type":"bridge","delegate":{"type":"crinet"}}`)},
			back("1.conflist", "a", "plugin type crinet")},
		{"other delegates", files{"1.conflist": one("a", "1.0.0", `{"type":"bridge","name":"crinet","delegates":[{"type":"loopback"},7],"delegate":{"type":"bridge"},"clusterNetwork":"10-flannel.conflist","kubeconfig":"/etc/crinet"}`)},
			"1.conflist: a 1.0.0 bridge\n"},
	})
}

// The types that are probed: what a configuration names and nothing else.
func TestLoadedTypes(t *testing.T) {
	t.Parallel()
	good := load(confDir("3.conflist", one("c", "1.0.0", `{"type":"kept"}`)), nil)
	l := load(confDir(
		"1.conflist", one("a", "1.0.0", `{"type":"flannel","delegate":{"type":"bridge","ipam":{"type":"host-local"}}},{"type":"portmap"}`),
		"2.conf", `{"name":"b","type":"multus","ipam":{"type":"whereabouts"},"delegates":[{"plugins":[{"type":"macvlan"},{"type":"../../bin/sh"},{"type":""},{"type":".."}]},{"type":"portmap"}],"policy":{"type":"k8s"}}`,
		"3.conflist", "broken now",
		"4.conflist", "never good",
	), good.good())
	want := []string{"bridge", "flannel", "host-local", "kept", "macvlan", "multus", "portmap", "whereabouts"}
	if diff := cmp.Diff(want, l.types()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := strings.Join(load(&Dir{}, nil).types(), " "); got != "" {
		t.Errorf("an empty directory names %s", got)
	}
}
