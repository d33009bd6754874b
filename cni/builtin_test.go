package cni

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// Who masquerades is decided by what ran: only a built-in leaves it to the caller.
func TestMasquerade(t *testing.T) {
	const (
		masq   = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","ipMasq":true},{"type":"tuning"}]}`
		plain  = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}`
		meta   = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"flannel"}]}`
		result = `{"cniVersion":"1.0.0","interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/netns"}],` +
			`"ips":[{"interface":1,"address":"192.0.2.7/24"},{"interface":1,"address":"2001:db8::7/64"},{"interface":0,"address":"192.0.2.1/24"}]}`
		old = `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"192.0.2.7/24"}]}`
	)
	four, six := netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")
	for _, tt := range []struct {
		name, list, result string
		builtin            []Builtin
		want               []netip.Prefix
	}{
		{"built in", masq, result, []Builtin{{Type: "bridge"}}, []netip.Prefix{four, six}},
		{"result of an old version", masq, old, []Builtin{{Type: "bridge"}}, []netip.Prefix{four}},
		{"executed", masq, result, nil, nil},
		{"another plugin is built in", masq, result, []Builtin{{Type: "host-local"}}, nil},
		{"without ipMasq", plain, result, []Builtin{{Type: "bridge"}}, nil},
		{"before ADD", masq, "", []Builtin{{Type: "bridge"}}, nil},
		{"delegated", meta, result, []Builtin{{Type: "flannel", Delegate: json.RawMessage(`{"type":"bridge","ipMasq":true}`)}}, []netip.Prefix{four, six}},
		{"delegated without", meta, result, []Builtin{{Type: "flannel", Delegate: json.RawMessage(`{"type":"bridge","ipMasq":false}`)}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := Attachment{Network: "net", ConfList: json.RawMessage(tt.list), Result: json.RawMessage(tt.result), Builtin: tt.builtin}
			got, err := a.Masquerade()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
				t.Errorf("Masquerade (-want +got):\n%s", diff)
			}
		})
	}
	a := Attachment{ConfList: json.RawMessage(masq), Result: json.RawMessage(`{`), Builtin: []Builtin{{Type: "bridge"}}}
	if _, err := a.Masquerade(); err == nil {
		t.Error("Masquerade of a result that cannot be read: no error")
	}
}
