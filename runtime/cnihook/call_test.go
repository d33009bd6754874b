package cnihook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/runtime/journal"
)

func TestParseArgs(t *testing.T) {
	t.Parallel()
	pod := journal.Pod{Namespace: "ns", Name: "web-0", UID: "uid-1"}
	tests := []struct {
		name, text string
		args       [][2]string
		pod        journal.Pod
		want       string // in the error
	}{
		{"none", "", nil, journal.Pod{}, ""},
		{"unknown keys in their order", "B=2;A=1;FOO=a=b;E=", [][2]string{{"B", "2"}, {"A", "1"}, {"FOO", "a=b"}, {"E", ""}}, journal.Pod{}, ""},
		{"containerd's", podArgs, [][2]string{
			{"K8S_POD_UID", "uid-1"}, {"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_INFRA_CONTAINER_ID", "abc123"},
		}, pod, ""},
		{"no value", "A=1;B", [][2]string{{"A", "1"}}, journal.Pod{}, `"B" is not KEY=VALUE`},
		{"no key", "=1", [][2]string{}, journal.Pod{}, `"=1"`},
		{"empty pair", "A=1;", [][2]string{{"A", "1"}}, journal.Pod{}, `"" is not KEY=VALUE`},
		{"control character", "A=1\n2", [][2]string{}, journal.Pod{}, "KEY=VALUE"},
		{"pod twice", "K8S_POD_NAME=a;K8S_POD_NAME=b", [][2]string{{"K8S_POD_NAME", "a"}, {"K8S_POD_NAME", "b"}}, journal.Pod{Name: "b"}, `K8S_POD_NAME is there twice, as "a" and as "b"`},
		{"pod twice with one value", "K8S_POD_NAME=a;K8S_POD_UID=u;K8S_POD_NAME=a;K8S_POD_UID=u",
			[][2]string{{"K8S_POD_NAME", "a"}, {"K8S_POD_UID", "u"}, {"K8S_POD_NAME", "a"}, {"K8S_POD_UID", "u"}}, journal.Pod{Name: "a", UID: "u"}, ""},
		{"too many", strings.Repeat("A=1;", maxArgs) + "A=1", nil, journal.Pod{}, "65 pairs"},
		{"too long", "A=" + strings.Repeat("x", maxArgsBytes), nil, journal.Pod{}, "is the limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args, pod, err := parseArgs(tt.text)
			if diff := cmp.Diff(tt.args, args); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.pod, pod); diff != "" {
				t.Error(diff)
			}
			var e *wire.Error
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (!errors.As(err, &e) || e.Code != wire.CodeInvalidEnvironment || !strings.Contains(e.Msg, tt.want)):
				t.Errorf("got %v, want code 4 with %q", err, tt.want)
			}
		})
	}
}

func TestWireError(t *testing.T) {
	t.Parallel()
	cni := types.NewError(types.ErrTryAgainLater, "no address left", "range 192.0.2.0/24")
	tests := []struct {
		err  error
		want wire.Error
	}{
		{errors.New("plain"), wire.Error{Code: 999, Msg: "pod ns/p: plain"}},
		{cni, wire.Error{Code: 11, Msg: "pod ns/p: no address left", Details: "range 192.0.2.0/24"}},
		{fmt.Errorf("network n: plugin bridge: %w", cni), wire.Error{Code: 11, Msg: "pod ns/p: network n: plugin bridge: no address left", Details: "range 192.0.2.0/24"}},
		{fmt.Errorf("a: %w (b)", cni), wire.Error{Code: 11, Msg: "pod ns/p: a: no address left; range 192.0.2.0/24 (b)"}},
		{types.NewError(0, "no code", ""), wire.Error{Code: 999, Msg: "pod ns/p: no code"}},
		{fmt.Errorf("step: %w", context.DeadlineExceeded), wire.Error{Code: 999, Msg: "pod ns/p: step: context deadline exceeded"}},
		{fmt.Errorf("network n: plugin bridge: %w", &wire.Error{CNIVersion: "0.4.0", Code: 11, Msg: "no address left", Details: "range"}),
			wire.Error{Code: 11, Msg: "pod ns/p: network n: plugin bridge: no address left", Details: "range"}},
		{wire.Errorf(4, "bad"), wire.Error{Code: 4, Msg: "pod ns/p: bad"}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(&tt.want, wireError("pod ns/p", tt.err)); diff != "" {
			t.Errorf("%v: %s", tt.err, diff)
		}
	}
}

// TestConvertResult gives every version of a result to every version asked
// for.
func TestConvertResult(t *testing.T) {
	t.Parallel()
	newer := `{"cniVersion":%q,"interfaces":[{"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"interface":0,"address":"192.0.2.2/24","gateway":"192.0.2.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["192.0.2.53"]}}`
	older := strings.Replace(newer, `"interface":0`, `"version":"4","interface":0`, 1)
	templates := map[string]string{"0.3.0": older, "0.3.1": older, "0.4.0": older, "1.0.0": newer, "1.1.0": newer}
	for has, template := range templates {
		for _, wanted := range wire.SupportedVersions() {
			got, err := convertResult(fmt.Appendf(nil, template, has), wanted)
			if err != nil {
				t.Errorf("%s to %s: %v", has, wanted, err)
				continue
			}
			var a, b any
			if err := errors.Join(json.Unmarshal(got, &a), json.Unmarshal(fmt.Appendf(nil, templates[wanted], wanted), &b)); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(b, a); diff != "" {
				t.Errorf("%s to %s: %s", has, wanted, diff)
			}
		}
	}
	same := `{"cniVersion":"1.0.0",  "future": true}`
	if got, err := convertResult([]byte(same), "1.0.0"); err != nil || string(got) != same {
		t.Errorf("same version: %s, %v", got, err)
	}
	for _, bad := range []string{"", "hello", "[]", `{"cniVersion":"9.0.0"}`, `{"cniVersion":"1.0.0","ips":[{"address":"x"}]}`} {
		if got, err := convertResult([]byte(bad), "1.0.0"); err == nil {
			t.Errorf("%q became %s", bad, got)
		}
	}
}

func FuzzNewCall(f *testing.F) {
	f.Add("ADD", "abc", "/run/netns/x", "eth0", podArgs, `{"cniVersion":"1.0.0","name":"n","runtimeConfig":{"portMappings":[]}}`)
	f.Add("GC", "../x", "x", "a/b", ";=", "[")
	f.Fuzz(func(t *testing.T, command, id, netns, ifname, args, stdin string) {
		call, err := newCall(&wire.Request{Command: command, ContainerID: id, NetNS: netns, IfName: ifname, Args: args, Stdin: []byte(stdin)})
		var e *wire.Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("a %T: %v", err, err)
		}
		if strings.ContainsAny(call.ContainerID+call.IfName, "/\x00\n") {
			t.Errorf("unsafe in paths: %q, %q", call.ContainerID, call.IfName)
		}
	})
}
