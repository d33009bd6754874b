package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
)

// memory is a Meta.
type memory struct {
	values map[string][]byte
	fail   error
}

func (m *memory) PutMeta(name string, value []byte) error {
	if m.fail == nil {
		m.values[name] = value
	}
	return m.fail
}

func (m *memory) Meta(name string) ([]byte, error) { return m.values[name], nil }

func podCIDRs(t *testing.T, meta Meta, flag ...string) *PodCIDRs {
	t.Helper()
	var prefixes []netip.Prefix
	for _, f := range flag {
		prefixes = append(prefixes, netip.MustParsePrefix(f))
	}
	p, err := NewPodCIDRs(meta, prefixes, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *PodCIDRs) mustSet(t *testing.T, text string, changed bool) {
	t.Helper()
	if got, err := p.Set(text); err != nil || got != changed {
		t.Errorf("Set(%s) = %v, %v; want %v", text, got, err, changed)
	}
}

func (p *PodCIDRs) want(t *testing.T, what, want string) {
	t.Helper()
	if got := fmt.Sprint(p.Get()); got != want {
		t.Errorf("%s: pod CIDRs %s, want %s", what, got, want)
	}
}

func TestPodCIDRsAreChecked(t *testing.T) {
	p := podCIDRs(t, &memory{values: map[string][]byte{}})
	for _, bad := range []string{"", "x", "10.0.0.0/33", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,2001:db8::/64,2001:db8:1::/64"} {
		if _, err := p.Set(bad); err == nil {
			t.Errorf("pod CIDR %q was taken", bad)
		}
	}
	p.want(t, "after refusals", "[]")
	p.mustSet(t, "10.1.2.3/16", true)
	p.mustSet(t, "10.1.2.3/16", false)
	p.want(t, "set", "[10.1.0.0/16]")
}

// The newest word counts: UpdateRuntimeConfig over the flag that was there
// before, a flag that was changed since over what is stored (review row B9).
func TestNewestPodCIDRCounts(t *testing.T) {
	meta := &memory{values: map[string][]byte{}}
	p := podCIDRs(t, meta, "10.9.0.0/16")
	p.want(t, "the flag alone", "[10.9.0.0/16]")
	p.mustSet(t, "10.1.0.0/16", true)
	podCIDRs(t, meta, "10.9.0.0/16").want(t, "restart with the same flag", "[10.1.0.0/16]")
	podCIDRs(t, meta).want(t, "restart without the flag", "[10.1.0.0/16]")
	changed := podCIDRs(t, meta, "10.8.0.0/16")
	changed.want(t, "restart with another flag", "[10.8.0.0/16]")
	changed.mustSet(t, "10.1.0.0/16", true)
	podCIDRs(t, meta, "10.8.0.0/16").want(t, "the kubelet's word after that", "[10.1.0.0/16]")
}

// A pod CIDR counts although it cannot be kept (review row B9).
func TestPodCIDROnAFullDisk(t *testing.T) {
	meta := &memory{values: map[string][]byte{}, fail: errors.New("no space left on device")}
	p := podCIDRs(t, meta)
	p.mustSet(t, "10.1.0.0/16", true)
	p.want(t, "unkept", "[10.1.0.0/16]")
	meta.fail = nil
	p.mustSet(t, "10.1.0.0/16", false)
	podCIDRs(t, meta).want(t, "kept when told again", "[10.1.0.0/16]")
}

func TestPodCIDROfAnEarlierRelease(t *testing.T) {
	podCIDRs(t, &memory{values: map[string][]byte{podCIDRKey: []byte("10.1.0.0/16")}}).want(t, "stored alone", "[10.1.0.0/16]")
}
