package bugreport

import (
	"bytes"
	"cmp"
	_ "embed" // the page's template
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/recorder"
)

//go:embed page.html
var pageText string

// Page is the report as a page: self-contained, without scripts, for any browser.
type Page struct {
	Host, Version string
	Now           time.Time
	Missing       []Missing

	mu         sync.Mutex // guards what follows
	Status     *admin.Status
	Doctor     *doctor.Report
	Pods       []admin.Pod
	Operations []recorder.Operation // the newest first
}

func (p *Page) setStatus(s admin.Status) { p.mu.Lock(); defer p.mu.Unlock(); p.Status = &s }

func (p *Page) setDoctor(r doctor.Report) { p.mu.Lock(); defer p.mu.Unlock(); p.Doctor = &r }

func (p *Page) setPods(pods []admin.Pod) { p.mu.Lock(); defer p.mu.Unlock(); p.Pods = pods }

func (p *Page) setOperations(all []recorder.Operation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Operations = all
}

// HTML returns the page. All that it shows of others is escaped by html/template.
func (p *Page) HTML() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, err := template.New("page").Funcs(template.FuncMap{
		"ms": milliseconds, "time": clock, "short": short, "join": strings.Join, "findings": findings, "others": others, "scale": scaleTicks,
	}).Parse(pageText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]any{
		"Page": p, "Timeline": newTimeline(p.Operations), "Latencies": latencies(p.Operations), "Failures": failures(p.Operations),
	})
	return b.Bytes(), err
}

// clock is a time as the page shows it.
func clock(t time.Time) string { return t.UTC().Format("01-02 15:04:05") }

// milliseconds is a duration in seconds as the page shows it.
func milliseconds(seconds float64) string {
	switch {
	case seconds < 0.01:
		return fmt.Sprintf("%.2f ms", seconds*1e3)
	case seconds < 10:
		return fmt.Sprintf("%.0f ms", seconds*1e3)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

// short is as much of a sandbox's id as crictl shows.
func short(id string) string { return id[:min(len(id), 13)] }

// findings are the doctor's results that somebody must look at.
func findings(r *doctor.Report) []doctor.Result {
	return slices.DeleteFunc(slices.Clone(r.Results), func(one doctor.Result) bool { return quiet(&one) })
}

// others are the doctor's other results.
func others(r *doctor.Report) []doctor.Result {
	return slices.DeleteFunc(slices.Clone(r.Results), func(one doctor.Result) bool { return !quiet(&one) })
}

func quiet(r *doctor.Result) bool { return !r.Failed() && r.Outcome != doctor.Outcome(doctor.Info) }

// maxFailures is how many failures the page tells in full.
const maxFailures = 20

// failures are the last operations that failed.
func failures(all []recorder.Operation) []recorder.Operation {
	var failed []recorder.Operation
	for _, o := range all {
		if o.Failed() && len(failed) < maxFailures {
			failed = append(failed, o)
		}
	}
	return failed
}

// Latency is how long the runs of one plugin took.
type Latency struct {
	Plugin, Command, How string
	Runs, Errors         int
	P50, P90, Max        float64 // seconds
	Dots                 []Dot   // each run, on a logarithmic scale
}

// Dot is a run's place on the scale, from 0 to 100.
type Dot struct {
	X      float64
	Failed bool
	Title  string
}

// latencies are those of all plugins, the slowest first.
func latencies(all []recorder.Operation) []Latency {
	type key struct {
		plugin, command string
		builtin         bool
	}
	runs := make(map[key][]recorder.Run)
	for _, o := range all {
		for _, r := range o.Runs {
			k := key{r.Type, r.Command, r.Builtin}
			runs[k] = append(runs[k], r)
		}
	}
	var table []Latency
	for k, of := range runs {
		table = append(table, newLatency(k.plugin, k.command, k.builtin, of))
	}
	slices.SortFunc(table, func(a, b Latency) int {
		return cmp.Or(cmp.Compare(b.P90, a.P90), cmp.Compare(a.Plugin+a.Command+a.How, b.Plugin+b.Command+b.How))
	})
	return table
}

func newLatency(plugin, command string, builtin bool, runs []recorder.Run) Latency {
	l := Latency{Plugin: plugin, Command: command, How: "executed", Runs: len(runs)}
	if builtin {
		l.How = "built in"
	}
	took := make([]float64, 0, len(runs))
	for _, r := range runs {
		took = append(took, r.Took)
		if r.Err != "" {
			l.Errors++
		}
		l.Dots = append(l.Dots, Dot{
			X: scale(r.Took), Failed: r.Err != "", Title: fmt.Sprintf("%s at %s: %s %s", milliseconds(r.Took), clock(r.Start), command, r.Err),
		})
	}
	slices.Sort(took)
	l.P50, l.P90, l.Max = quantile(took, 0.5), quantile(took, 0.9), took[len(took)-1]
	return l
}

// quantile is the nearest rank's value in sorted values.
func quantile(sorted []float64, q float64) float64 {
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

// scaleTicks are the marks of the scale, on a picture 300 wide.
func scaleTicks() []Tick {
	texts := []string{"0.1 ms", "", "10 ms", "", "1 s", "", "100 s"} // more would overlap
	var all []Tick
	for i, text := range texts {
		all = append(all, Tick{X: float64(i) * 50, Text: text, Anchor: anchor(i, len(texts))})
	}
	return all
}

// scale is a duration's place on the page's scale, from 0.1 ms at 0 to 100 s at 100.
func scale(seconds float64) float64 {
	return min(max((math.Log10(max(seconds, 1e-9))+4)/6*100, 0), 100)
}
