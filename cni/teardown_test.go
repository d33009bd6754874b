package cni

import (
	"os"
	"strings"
	"testing"

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
