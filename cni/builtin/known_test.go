package builtin_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/cni/builtin"
)

// A configuration with anything that is not known is executed.
func TestKnown(t *testing.T) {
	const ipam = `"ipam":{"type":"host-local","subnet":"10.1.0.0/24"}`
	for _, tt := range []struct {
		typ, conf string
		parts     []string
		err       string
	}{
		{"bridge", ipam, []string{"bridge", "host-local"}, ""},
		{"bridge", ``, []string{"bridge"}, ""},
		{"bridge", `"ipam":{}`, []string{"bridge"}, ""},
		{"bridge", `"isGateway":true,"vlan":0,` + ipam, []string{"bridge", "host-local"}, ""},
		{"bridge", `"isgateway":true,` + ipam, []string{"bridge", "host-local"}, ""}, // as encoding/json has it
		{"bridge", `"capabilities":{"portMappings":true},` + ipam, []string{"bridge", "host-local"}, ""},
		{"ptp", ipam, []string{"ptp", "host-local"}, ""},
		{"bridge", `"vlan":7,` + ipam, nil, "vlan"},
		{"bridge", `"vlanTrunk":[],` + ipam, nil, "vlanTrunk"},
		{"bridge", `"macspoofchk":true,` + ipam, nil, "macspoofchk"},
		{"bridge", `"ipam":{"type":"dhcp"}`, nil, "dhcp"},
		{"bridge", `"ipam":{"type":"host-local","subnet":"10.1.0.0/24","new":1}`, nil, "new"},
		{"bridge", `"ipam":{"type":"host-local","ranges":[[{"subnet":"10.1.0.0/24","new":1}]]}`, nil, "new"},
		{"bridge", `"ipam":{"type":"host-local","subnet":"10.1.0.0/24","routes":[{"dst":"0.0.0.0/0","via":"10.1.0.1"}]}`, nil, "via"},
		{"bridge", `"newKey":1,` + ipam, nil, "newKey"},
		{"bridge", `"mtu":"1400",` + ipam, nil, "mtu"},
		{"bridge", `"args":{"cni":{"labels":[]}},` + ipam, nil, "labels"},
		{"bridge", `"cniVersion":"0.2.0",` + ipam, nil, "0.2.0"},
		{"ptp", ``, nil, "ipam"},
		{"ptp", `"hairpinMode":true,` + ipam, nil, "hairpinMode"},
		{"host-local", ipam, nil, "IPAM"},
		{"macvlan", ipam, nil, ""},
	} {
		t.Run(tt.typ+" "+tt.conf, func(t *testing.T) {
			version := ""
			if !strings.Contains(tt.conf, "cniVersion") {
				version = `"cniVersion":"1.0.0",`
			}
			conf := `{` + version + `"name":"net","type":"` + tt.typ + `"`
			if tt.conf != "" {
				conf += "," + tt.conf
			}
			parts, _, err := builtin.Known(tt.typ, []byte(conf+"}"))
			if tt.parts == nil && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.parts != nil && err != nil || !slices.Equal(parts, tt.parts) {
				t.Errorf("Known: %v, %v, want %v and an error with %q", parts, err, tt.parts, tt.err)
			}
		})
	}
}

// flannel is built in when what it delegates to is.
func TestKnownFlannel(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subnet.env")
	conf := func(more string) []byte {
		return []byte(`{"cniVersion":"0.4.0","name":"net","type":"flannel","subnetFile":"` + file + `"` + more + `}`)
	}
	if _, _, err := builtin.Known("flannel", conf("")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("without flanneld's file: %v, want an error that names it", err)
	}
	env := "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
	if err := os.WriteFile(file, []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
	parts, delegate, err := builtin.Known("flannel", conf(`,"delegate":{"hairpinMode":true,"isDefaultGateway":true}`))
	if err != nil || !slices.Equal(parts, []string{"flannel", "bridge", "host-local"}) {
		t.Errorf("Known: %v, %v", parts, err)
	}
	const want = `{"cniVersion":"0.4.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.3.0/24"}]],` +
		`"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"net","type":"bridge"}`
	if string(delegate) != want {
		t.Errorf("delegate\n%s, want\n%s", delegate, want)
	}
	for _, more := range []string{`,"delegate":{"type":"macvlan"}`, `,"delegate":{"vlan":3}`, `,"delegate":{"ipam":{}}`, `,"ipam":{"type":"dhcp"}`, `,"newKey":1`} {
		if _, _, err := builtin.Known("flannel", conf(more)); err == nil {
			t.Errorf("%s is built in", more)
		}
	}
}

func TestReference(t *testing.T) {
	for _, tt := range []struct {
		typ, about string
		ok         bool
	}{
		{"bridge", "CNI bridge plugin v1.9.1", true},
		{"bridge", "CNI bridge plugin v1.7.1-k3s1", true},
		{"flannel", "CNI flannel plugin v0.9.1", true},
		{"flannel", "CNI Plugin flannel version v1.4.0-flannel1 (linux/amd64) commit x built on y", true},
		{"bridge", "CNI Plugin flannel version v1.4.0", false},
		{"ptp", "CNI bridge plugin v1.9.1", false},
		{"bridge", "CNI bridge plugin version unknown", false},
		{"bridge", "CNI bridge plugin v2.0.0", false},
		{"bridge", "", false},
		{"bridge", "bridge of somebody else", false},
	} {
		if err := builtin.Reference(tt.typ, tt.about); (err == nil) != tt.ok {
			t.Errorf("Reference(%q, %q) = %v", tt.typ, tt.about, err)
		}
	}
}
