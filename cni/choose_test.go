package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/config"
)

// fakeBuiltin notes the calls of built-in plugins.
type fakeBuiltin struct{ calls []builtin.Call }

func (f *fakeBuiltin) Execute(_ context.Context, call *builtin.Call) ([]byte, error) {
	f.calls = append(f.calls, *call)
	if call.Command != "ADD" {
		return nil, nil
	}
	return []byte(`{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.9/24"}]}`), nil
}

// choosingBench is a bench with a list whose first plugin can be built in.
func choosingBench(t *testing.T, list string) (*bench, *fakeBuiltin, *[]Run) {
	b, fake, runs := newBench(t, list), &fakeBuiltin{}, &[]Run{}
	b.network.About = map[string]string{"bridge": "CNI bridge plugin v1.9.1", "host-local": "CNI host-local plugin v1.9.1"}
	b.plugin = New(Config{
		BinDirs: []string{b.dir}, CacheDir: b.path("cache"), Timeout: 10 * time.Second,
		Selected: func() (*config.Network, error) { return b.network, nil },
		Runner:   pluginexec.New(pluginexec.Config{}), Builtin: fake, BuiltinTypes: builtin.Types(),
		Observe: func(ctx context.Context, _ Run) (context.Context, []string, func(Run)) {
			return ctx, nil, func(r Run) { *runs = append(*runs, r) }
		},
	})
	return b, fake, runs
}

const mixedList = `{"cniVersion":"1.0.0","name":"net","plugins":[
	{"type":"bridge","capabilities":{"mac":true},"ipam":{"type":"host-local","subnet":"192.0.2.0/24"}},{"type":"good2"}]}`

func TestChoose(t *testing.T) {
	list := func(plugins ...string) string {
		return `{"cniVersion":"1.0.0","name":"net","plugins":[` + strings.Join(plugins, ",") + `]}`
	}
	const plain = `{"type":"bridge","ipam":{"type":"host-local","subnet":"192.0.2.0/24"}}`
	const masq = `{"type":"bridge","ipMasq":true,"ipam":{"type":"host-local","subnet":"192.0.2.0/24"}}`
	for _, tt := range []struct {
		name, list string
		change     func(*bench)
		want       string // what How says of the first plugin
	}{
		{"known", list(plain), func(*bench) {}, "true "},
		{"an unknown key", list(`{"type":"bridge","newKey":1}`), func(*bench) {}, "newKey"},
		{"twice in the list", list(plain, `{"type":"bridge","bridge":"b"}`), func(*bench) {}, "twice"},
		{"off", list(plain), func(b *bench) { b.plugin.config.BuiltinTypes = nil }, "--builtin-plugins is off"},
		{"not listed", list(plain), func(b *bench) { b.plugin.config.BuiltinTypes = []string{"bridge"} }, "leaves host-local out"},
		{"another binary", list(plain), func(b *bench) { b.network.About["bridge"] = "my bridge" }, "my bridge"},
		{"another IPAM binary", list(plain), func(b *bench) { delete(b.network.About, "host-local") }, "host-local does not say"},
		{"masquerades", list(masq), func(b *bench) { b.plugin.config.CanMasquerade = func() error { return nil } }, "true "},
		{"cannot masquerade", list(masq), func(b *bench) {
			b.plugin.config.CanMasquerade = func() error { return errors.New("no nftables") }
		}, "no nftables"},
		{"need not masquerade", list(plain), func(b *bench) {
			b.plugin.config.CanMasquerade = func() error { return errors.New("no nftables") }
		}, "true "},
		{"no such built-in", list(`{"type":"good"}`), func(*bench) {}, "no such plugin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _, _ := choosingBench(t, tt.list)
			tt.change(b)
			how := b.plugin.How(b.network)
			if said := fmt.Sprint(how[0].Builtin, " ", how[0].Why); !strings.Contains(said, tt.want) {
				t.Errorf("How says %q, want %q", said, tt.want)
			}
			if a := b.planned(t); (len(a.Builtin) > 0) != (tt.want == "true ") {
				t.Errorf("Plan has built in %v", a.Builtin)
			}
		})
	}
}

// A chain is mixed: the built-in gets what its binary would get, and the next plugin
// its result. DEL and CHECK use what ADD used, with an empty bin dir and the flag off.
func TestMixedChain(t *testing.T) {
	b, fake, runs := choosingBench(t, mixedList)
	a := b.planned(t)
	var err error
	if a.Result, err = b.plugin.SetUpPod(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	calls, stdin := b.logged(t)
	if diff := cmp.Diff([]string{"good2 ADD"}, calls); diff != "" {
		t.Fatalf("executed (-want +got):\n%s", diff)
	}
	if prev := fmt.Sprint(stdin[0]["prevResult"]); !strings.Contains(prev, "192.0.2.9/24") {
		t.Errorf("the next plugin got prevResult %s", prev)
	}
	got := fake.calls[0]
	config := string(got.Config)
	got.Config = nil
	if diff := cmp.Diff(builtin.Call{
		Type: "bridge", Command: "ADD", ContainerID: "id", NetNS: "/proc/self/ns/net", IfName: "eth0", Args: "IgnoreUnknown=1;K8S_POD_NAME=p",
	}, got); diff != "" || !strings.Contains(config, `"runtimeConfig":{"mac":"02:00:00:00:00:01"}`) {
		t.Errorf("the built-in got %s (-want +got):\n%s", config, diff)
	}
	if len(*runs) != 2 || !(*runs)[0].Builtin || (*runs)[1].Builtin || (*runs)[1].Type != "good2" {
		t.Errorf("runs %+v", *runs)
	}

	b.plugin.config.BuiltinTypes = nil
	if err := os.Remove(b.path("good2")); err != nil {
		t.Fatal(err)
	}
	a.ConfList = json.RawMessage(strings.Replace(mixedList, `,{"type":"good2"}`, "", 1))
	if err := b.plugin.CheckPod(t.Context(), a); err != nil {
		t.Error(err)
	}
	if err := b.plugin.TearDownPod(t.Context(), a); err != nil {
		t.Error(err)
	}
	for i, verb := range []string{"CHECK", "DEL"} {
		if call := fake.calls[i+1]; call.Command != verb || !strings.Contains(string(call.Config), "192.0.2.3/24") {
			t.Errorf("the built-in got %s with %s, want %s with ADD's result", call.Command, call.Config, verb)
		}
	}
}

// STATUS asks what new pods would be networked by: no process for a built-in plugin.
func TestStatusOfBuiltin(t *testing.T) {
	b, fake, _ := choosingBench(t, strings.Replace(mixedList, "1.0.0", "1.1.0", 1))
	b.network.CNIVersion = "1.1.0"
	if err := b.plugin.NetworkStatus(t.Context(), b.network); err != nil {
		t.Fatal(err)
	}
	calls, _ := b.logged(t)
	if diff := cmp.Diff([]string{"good2 STATUS"}, calls); diff != "" || len(fake.calls) != 1 || fake.calls[0].Command != "STATUS" {
		t.Errorf("built in %+v, executed (-want +got):\n%s", fake.calls, diff)
	}
}

// What ADD used comes back from libcni's cache if the journal is lost.
func TestBuiltinIsCached(t *testing.T) {
	b, fake, _ := choosingBench(t, mixedList)
	a := b.planned(t)
	if _, err := b.plugin.SetUpPod(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	found, err := b.plugin.Cached("id")
	if err != nil || len(found) != 1 {
		t.Fatalf("Cached: %v, %v", found, err)
	}
	if diff := cmp.Diff(a.Builtin, found[0].Builtin); diff != "" {
		t.Errorf("built in (-want +got):\n%s", diff)
	}
	if got := string(fake.calls[0].Config); strings.Contains(got, builtinCapability) {
		t.Errorf("the plugin got crinet's own note: %s", got)
	}
}
