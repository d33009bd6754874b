package main

import (
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for want, values := range map[float64][]float64{3: {5, 3, 1}, 2.5: {4, 2, 1, 3}, 7: {7}} {
		if got := median(values); got != want {
			t.Errorf("median(%v) = %v, want %v", values, got, want)
		}
	}
}

// 95 % of the medians of 100 values lie between the 41st and the 61st.
func TestMedianRange(t *testing.T) {
	var values []float64
	for i := range 100 {
		values = append(values, float64(100-i))
	}
	if low, high := medianRange(values); low != 41 || high != 61 {
		t.Errorf("medianRange = %v, %v, want 41, 61", low, high)
	}
	if low, high := medianRange([]float64{2}); low != 2 || high != 2 {
		t.Errorf("medianRange of one value = %v, %v, want 2, 2", low, high)
	}
}

func TestSeries(t *testing.T) {
	var s series
	s.add(2*time.Millisecond, 3*time.Millisecond)
	s.add(4*time.Millisecond, 8*time.Millisecond)
	if got := s.median(through); got != 5.5 {
		t.Errorf("median = %v ms, want 5.5", got)
	}
	if got := s.ratios(through, direct); got[0] != 1.5 || got[1] != 2 {
		t.Errorf("ratios = %v, want 1.5 and 2", got)
	}
	if got := s.differences(through, direct); got[0] != 1 || got[1] != 4 {
		t.Errorf("differences = %v, want 1 and 4", got)
	}
}

// A pod's rules are copied to a chain of another name and to other ports; what
// is no port of the match stays.
func TestMoveRule(t *testing.T) {
	for rule, want := range map[string]string{
		"-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 10000,10001 -j CNI-DN-0a1b2c\n":     "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 10300,10301 -j CNI-DN-bbbb00300\n",
		"-A CNI-DN-0a1b2c -p tcp -m tcp --dport 10000 -j DNAT --to-destination 10.10.0.2:80\n": "-A CNI-DN-bbbb00300 -p tcp -m tcp --dport 10300 -j DNAT --to-destination 10.10.0.2:80\n",
	} {
		if got := moveRule(rule, copiedChain+"00300", 300); got != want {
			t.Errorf("moveRule(%q) = %q, want %q", rule, got, want)
		}
	}
}
