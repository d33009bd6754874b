package cni

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A dhcp lease is given back before the chain takes the interface away.
func TestLeaseIsReleasedFirst(t *testing.T) {
	t.Parallel()
	conf := `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"good","ipam":{"type":"dhcp"}},{"type":"good2"}]}`
	for _, tt := range []struct {
		name, netns, body string
		conf              string
		calls             []string
		err               string
	}{
		{"released", "/proc/self/ns/net", "exit 0", conf, []string{"dhcp DEL", "good2 DEL", "good DEL"}, ""},
		{"the interface is gone", "", "exit 0", conf, []string{"good2 DEL", "good DEL"}, ""},
		{"made up for by the chain", "/proc/self/ns/net", "exit 1", conf, []string{"dhcp DEL", "good2 DEL", "good DEL"}, ""},
		{"told beside the chain's failure", "/proc/self/ns/net", "echo no daemon >&2; exit 1", strings.Replace(conf, "good2", "refuses", 1),
			[]string{"dhcp DEL", "refuses DEL", "good DEL"}, "no daemon"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, tt.conf)
			script := "#!/bin/sh\nin=$(cat)\n{ printf 'dhcp %s ' \"$CNI_COMMAND\"; echo \"$in\"; } >>" + b.path("log") + "\n" + tt.body + "\n"
			if err := os.WriteFile(b.path("dhcp"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			a := b.planned(t)
			a.NetNS = tt.netns
			err := b.plugin.TearDownPod(t.Context(), a)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("TearDownPod: %v, want %q", err, tt.err)
			}
			calls, stdin := b.logged(t)
			if diff := cmp.Diff(tt.calls, calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if calls[0] == "dhcp DEL" {
				last := len(stdin) - 1
				if diff := cmp.Diff(stdin[last], stdin[0]); diff != "" {
					t.Errorf("dhcp gets another configuration than the plugin that it serves (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// DEL frees what the ADD had begun to reserve when it was cut off, also by a loss of
// power. It leaves alone what is there after an ADD that came to its end, and does not
// fail when it cannot be told where the addresses are.
func TestBegunAddressesAreFreed(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tt := range []struct {
		name, typ, netns, result string
		begun                    time.Time
		freed                    bool
	}{
		{name: "cut off", netns: "/proc/self/ns/net", begun: now, freed: true},
		{name: "the power failed", result: `{"cniVersion":"1.0.0"}`, begun: now, freed: true},
		{name: "at its end", netns: "/proc/self/ns/net", result: `{"cniVersion":"1.0.0"}`, begun: now},
		{name: "begun later", netns: "/proc/self/ns/net", begun: now.Add(time.Hour)},
		{name: "nobody knows when", netns: "/proc/self/ns/net"},
		{name: "nobody knows where", typ: "flannel", netns: "/proc/self/ns/net", begun: now},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data := t.TempDir()
			address := filepath.Join(data, "net", "10.1.0.7")
			if err := errors.Join(os.Mkdir(filepath.Join(data, "net"), 0o755), os.WriteFile(address, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			plugin := `{"type":"good","ipam":{"type":"host-local","subnet":"10.1.0.0/24","dataDir":"` + data + `"}}`
			if tt.typ != "" {
				plugin = `{"type":"` + tt.typ + `","subnetFile":"` + data + `/none"}`
			}
			b := newBench(t, `{"cniVersion":"1.0.0","name":"net","plugins":[`+plugin+`]}`)
			if err := os.WriteFile(b.path("flannel"), []byte("#!/bin/sh\ncat >/dev/null\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			a := b.planned(t)
			a.NetNS, a.Begun, a.Result = tt.netns, tt.begun, json.RawMessage(tt.result)
			if err := b.plugin.TearDownPod(t.Context(), a); err != nil {
				t.Errorf("TearDownPod: %v", err)
			}
			if _, err := os.Stat(address); errors.Is(err, os.ErrNotExist) != tt.freed {
				t.Errorf("the address: %v, want it freed: %t", err, tt.freed)
			}
		})
	}
}
