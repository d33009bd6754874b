package main

import "fmt"

// The ways that are compared, as indexes of a series' rounds.
const (
	direct  = 0
	through = 1
)

// table is what was measured of both ways.
type table struct{ grid grid }

func newTable() *table {
	return &table{grid{head: []string{"measured", "direct", "crinetd", "cost", "target", "reached"}}}
}

// addRatio adds times of which crinetd's may be a multiple of the direct ones, any
// if limit is 0. The median of the pairs' ratios counts; their quartiles are the
// spread.
func (t *table) addRatio(what string, s series, limit float64) {
	ratios := s.ratios(through, direct)
	low, high := quartiles(ratios)
	target, reached := "", ""
	if limit > 0 {
		target, reached = fmt.Sprintf("≤ × %.2f", limit), verdict(median(ratios) > limit)
	}
	t.grid.add(what, fmt.Sprintf("%.1f ms", s.median(direct)), fmt.Sprintf("%.1f ms", s.median(through)),
		fmt.Sprintf("× %.3f (%.3f to %.3f, n=%d)", median(ratios), low, high, len(ratios)), target, reached)
}

// addPlain adds what crinetd's side shows without a target.
func (t *table) addPlain(what, value string) { t.grid.add(what, "", value, "", "", "") }

// addDifference adds times of which crinetd's may be longer by milliseconds.
func (t *table) addDifference(what string, s series, limit float64) {
	more := s.median(through) - s.median(direct)
	low, high := medianRange(s.differences(through, direct))
	t.grid.add(what, fmt.Sprintf("%.3f ms", s.median(direct)), fmt.Sprintf("%.3f ms", s.median(through)),
		fmt.Sprintf("%+.3f ms (pairs: %+.3f, %+.3f to %+.3f)", more, median(s.differences(through, direct)), low, high),
		fmt.Sprintf("≤ %+.1f ms", limit), verdict(more > limit))
}

// addValue adds a value of crinetd alone.
func (t *table) addValue(what string, value, limit float64, unit string) {
	t.grid.add(what, "", fmt.Sprintf("%.1f %s", value, unit), "", fmt.Sprintf("≤ %.0f %s", limit, unit), verdict(value > limit))
}
