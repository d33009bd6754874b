package history

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/crinet-project/crinet/integration/plot"
)

// The names of samples.
const (
	SampleRSS        = "resident memory, MB"
	SampleHeap       = "heap in use, MB"
	SampleGoroutines = "goroutines"
	SampleFDs        = "descriptors"
	SampleLinks      = "links"
	SampleNetNS      = "network namespaces"
	SampleElements   = "lines of the nftables table"
	SampleConntrack  = "conntrack entries"
	SampleState      = "files in the state dir, KB"
)

// SampleNames are all of them, in the order of a report.
func SampleNames() []string {
	return []string{SampleRSS, SampleHeap, SampleGoroutines, SampleFDs, SampleLinks, SampleNetNS, SampleElements, SampleConntrack, SampleState}
}

// Summary is what a history says of a soak.
type Summary struct {
	Took                time.Duration
	Up, Failed, Removed int // RunPodSandbox that succeeded and failed, RemovePodSandbox that succeeded
	Kills               map[string]int
	Adds, Dels          int // operations that succeeded
	AddsFailed          int // operations, as those that were cut off
	DelsFailed          int
	AddsAgain           int // runs of ADD beyond the first of a plugin in one operation
	DelsAgain           int // operations beyond the first that succeeded or not, for one sandbox
	CutOff              int // operations without an end
	samples             map[string][]plot.Point
	run, stop           []plot.Point // milliseconds
}

// Summarize counts and measures a history.
func Summarize(events []Event) *Summary {
	s := &Summary{Kills: make(map[string]int), samples: make(map[string][]plot.Point)}
	if len(events) == 0 {
		return s
	}
	begin := events[0].Time
	begun := make(map[int]time.Time)
	for i := range events {
		e := &events[i]
		at := e.Time.Sub(begin)
		s.Took = max(s.Took, at)
		switch e.Kind {
		case CallBegan:
			begun[e.Call.Number] = e.Time
		case CallEnded:
			s.call(e.Call, plot.Point{At: at, Value: float64(e.Time.Sub(begun[e.Call.Number])) / float64(time.Millisecond)})
		case DaemonKilled:
			s.Kills[e.Daemon]++
		case Sampled:
			for name, value := range e.Sample {
				s.samples[name] = append(s.samples[name], plot.Point{At: at, Value: value})
			}
		case OperationEnd, PluginExec, TableChange, LinkChange, DaemonStart, Lost, End:
		}
	}
	for _, sandbox := range newModel(events).inOrder {
		s.sandbox(sandbox)
	}
	return s
}

func (s *Summary) call(c *Call, p plot.Point) {
	switch ok := c.Err == ""; c.Method {
	case "RunPodSandbox":
		if ok {
			s.Up++
			s.run = append(s.run, p)
		} else {
			s.Failed++
		}
	case "StopPodSandbox":
		if ok {
			s.stop = append(s.stop, p)
		}
	case "RemovePodSandbox":
		if ok {
			s.Removed++
		}
	}
}

func (s *Summary) sandbox(sandbox *sandbox) {
	for _, op := range sandbox.adds {
		switch {
		case !op.Done:
			s.CutOff++
		case op.succeeded():
			s.Adds++
		default:
			s.AddsFailed++
		}
		runs := make(map[string]int)
		for _, r := range op.Runs {
			if r.Command != "ADD" {
				continue
			}
			if runs[r.Type]++; runs[r.Type] > 1 {
				s.AddsAgain++
			}
		}
	}
	for i, op := range sandbox.dels {
		switch {
		case !op.Done:
			s.CutOff++
		case op.succeeded():
			s.Dels++
		default:
			s.DelsFailed++
		}
		if i > 0 {
			s.DelsAgain++
		}
	}
}

// Markdown is the summary as a document; image is the path of its plot.
func (s *Summary) Markdown(title, image string, violations int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s\n\n%.1f minutes. The history breaks the model in %d places.\n\n", title, s.Took.Minutes(), violations)
	b.WriteString("| what | how many |\n|---|---|\n")
	row := func(what string, n int) { fmt.Fprintf(&b, "| %s | %d |\n", what, n) }
	row("pods that came up", s.Up)
	row("RunPodSandbox that failed", s.Failed)
	row("RemovePodSandbox that succeeded", s.Removed)
	for _, daemon := range []string{"crinetd", "containerd"} {
		row("kills of "+daemon, s.Kills[daemon])
	}
	row("ADD that succeeded", s.Adds)
	row("ADD that failed", s.AddsFailed)
	row("runs of a plugin's ADD that were repeated in place", s.AddsAgain)
	row("DEL that succeeded", s.Dels)
	row("DEL that failed, same failures of a minute counted once", s.DelsFailed)
	row("DEL that were repeated for a sandbox", s.DelsAgain)
	row("ADD and DEL that a kill cut off", s.CutOff)
	b.WriteString("\n| | first | least | median | most | last |\n|---|---|---|---|---|---|\n")
	for _, name := range SampleNames() {
		if values := values(s.samples[name]); len(values) > 0 {
			sorted := slices.Sorted(slices.Values(values))
			fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", name, values[0], sorted[0], quantile(sorted, 0.5), sorted[len(sorted)-1], values[len(values)-1])
		}
	}
	b.WriteString("\n| ms | median | 99 of 100 within | most | median of the first tenth | of the last |\n|---|---|---|---|---|---|\n")
	for _, l := range []struct {
		name   string
		points []plot.Point
	}{{"RunPodSandbox that succeeded", s.run}, {"StopPodSandbox that succeeded", s.stop}} {
		if len(l.points) == 0 {
			continue
		}
		tenth := max(len(l.points)/10, 1)
		sorted := slices.Sorted(slices.Values(values(l.points)))
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", l.name, quantile(sorted, 0.5), quantile(sorted, 0.99), sorted[len(sorted)-1],
			quantile(slices.Sorted(slices.Values(values(l.points[:tenth]))), 0.5),
			quantile(slices.Sorted(slices.Values(values(l.points[len(l.points)-tenth:]))), 0.5))
	}
	fmt.Fprintf(&b, "\n![what was measured over time](%s)\n", image)
	return b.Bytes()
}

func values(points []plot.Point) (all []float64) {
	for _, p := range points {
		all = append(all, p.Value)
	}
	return all
}

// quantile of values that are sorted.
func quantile(sorted []float64, q float64) float64 {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// SVG draws what was measured over time.
func (s *Summary) SVG(title string) []byte {
	series := func(names ...string) (all []plot.Series) {
		for _, name := range names {
			all = append(all, plot.Series{Name: name, Points: s.samples[name]})
		}
		return all
	}
	return plot.Lines(title, []plot.Panel{
		{Title: "RunPodSandbox, ms", Series: s.overTime(s.run)},
		{Title: "StopPodSandbox, ms", Series: s.overTime(s.stop)},
		{Title: "crinetd's memory", Series: series(SampleRSS, SampleHeap)},
		{Title: "crinetd", Series: series(SampleGoroutines, SampleFDs)},
		{Title: "Kernel", Series: series(SampleLinks, SampleNetNS, SampleElements, SampleConntrack)},
		{Title: "Disk", Series: series(SampleState)},
	})
}

// buckets is how many points a latency over time has.
const buckets = 60

// overTime is the median and the 95th of a hundred of each part of the time.
func (s *Summary) overTime(points []plot.Point) []plot.Series {
	each := max(s.Took/buckets, time.Second)
	parts := make(map[time.Duration][]float64)
	for _, p := range points {
		parts[p.At/each] = append(parts[p.At/each], p.Value)
	}
	series := []plot.Series{{Name: "median"}, {Name: "95 of 100 within"}}
	for part := time.Duration(0); part*each <= s.Took; part++ {
		if len(parts[part]) == 0 {
			continue
		}
		slices.Sort(parts[part])
		series[0].Points = append(series[0].Points, plot.Point{At: part * each, Value: quantile(parts[part], 0.5)})
		series[1].Points = append(series[1].Points, plot.Point{At: part * each, Value: quantile(parts[part], 0.95)})
	}
	return series
}
