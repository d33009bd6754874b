package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"math"
	"strconv"
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

func TestQuartiles(t *testing.T) {
	if low, high := quartiles([]float64{5, 1, 4, 2, 3}); low != 2 || high != 4 {
		t.Errorf("quartiles = %v, %v, want 2, 4", low, high)
	}
	if low, high := quartiles([]float64{7}); low != 7 || high != 7 {
		t.Errorf("quartiles of one value = %v, %v, want 7, 7", low, high)
	}
}

func TestRows(t *testing.T) {
	o, err := parse([]string{"-rows", "bridge,burst"})
	if want := map[string]bool{"bridge": true, "burst": true}; err != nil || !maps.Equal(o.rows, want) {
		t.Errorf("rows %v, %v, want %v", o.rows, err, want)
	}
	if o, err = parse(nil); err != nil || len(o.rows) != len(allRows()) {
		t.Errorf("rows %v, %v, want all", o.rows, err)
	}
	if _, err := parse([]string{"-rows", "bridge,brust"}); err == nil {
		t.Error("a row that does not exist was accepted")
	}
}

// The plot is well-formed, and its bars are as long as the phases.
func TestPlot(t *testing.T) {
	lines := phaseLines()
	for _, line := range lines {
		for i := range line.phases {
			line.phases[i].took = []float64{float64(10 * (i + 1))}
		}
	}
	widths := 0.0
	decoder := xml.NewDecoder(bytes.NewReader(plotLines(lines)))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local == "rect" {
			for _, attr := range start.Attr {
				if attr.Name.Local == "width" && attr.Value != "12" { // not of the legend
					width, err := strconv.ParseFloat(attr.Value, 64)
					if err != nil {
						t.Fatal(err)
					}
					widths += width
				}
			}
		}
	}
	// 100 ms fill the width, 60 ms three of the four.
	if want := (plotWidth - 2*plotLeft) * (1 + 3*0.6); math.Abs(widths-want) > 1 {
		t.Errorf("the bars are %.1f wide together, want %.1f", widths, want)
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
