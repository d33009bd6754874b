package main

import (
	"math"
	"slices"
	"time"
)

// median of at least one value.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// medianRange is where the median of all there could be lies with a confidence
// of 95 %, whatever the distribution: the order statistics around the middle.
func medianRange(values []float64) (low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	reach := 1.96 * math.Sqrt(float64(n)) / 2
	first := max(int(math.Floor(float64(n)/2-reach)), 0)
	last := min(int(math.Ceil(float64(n)/2+reach)), n-1)
	return sorted[first], sorted[last]
}

// quartiles of at least one value: a quarter of the values lies below the first, a
// quarter above the second.
func quartiles(values []float64) (low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	last := float64(len(sorted) - 1)
	return sorted[int(math.Round(last/4))], sorted[int(math.Round(last*3/4))]
}

// series are the times of several ways to do the same, round by round.
type series [][]time.Duration

// add adds one round: a time for each way.
func (s *series) add(times ...time.Duration) { *s = append(*s, times) }

// median of one way, in milliseconds.
func (s series) median(way int) float64 {
	values := make([]float64, len(s))
	for i, round := range s {
		values[i] = millis(round[way])
	}
	return median(values)
}

// ratiosOf values of the same rounds, as far as both go.
func ratiosOf(values, to []float64) []float64 {
	ratios := make([]float64, min(len(values), len(to)))
	for i := range ratios {
		ratios[i] = values[i] / to[i]
	}
	return ratios
}

// ratios of one way to another, round by round.
func (s series) ratios(way, to int) []float64 {
	values := make([]float64, len(s))
	for i, round := range s {
		values[i] = float64(round[way]) / float64(round[to])
	}
	return values
}

// differences of one way and another, round by round, in milliseconds.
func (s series) differences(way, to int) []float64 {
	values := make([]float64, len(s))
	for i, round := range s {
		values[i] = millis(round[way] - round[to])
	}
	return values
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
