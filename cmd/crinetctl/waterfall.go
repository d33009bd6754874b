package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

// barWidth is the width of a waterfall's bars, labelWidth that of what is left of them.
const (
	barWidth   = 34
	labelWidth = 18
)

// bar is a line of a waterfall.
type bar struct {
	label string
	start time.Time
	took  float64 // in seconds
	note  string
	words []string // below it
}

// isBar says whether a line of a screen is one of a waterfall.
func isBar(line string) bool { return strings.HasPrefix(line, "  ") && strings.Count(line, "|") == 2 }

// operation is a title and a waterfall: the steps of the sandbox, and the plugins that
// ran.
func (w *whyOptions) operation(box *why.Sandbox, o *recorder.Operation, now time.Time) []string {
	lines := []string{w.title(o, now)}
	bars := barsOf(box, o)
	if len(bars) == 0 {
		return lines
	}
	first, end := bars[0].start, bars[0].start
	for _, b := range bars {
		if b.start.Before(first) {
			first = b.start
		}
		if e := b.start.Add(time.Duration(b.took * float64(time.Second))); e.After(end) {
			end = e
		}
	}
	for _, b := range bars {
		note := b.note
		if strings.HasPrefix(note, "FAILED") || strings.HasPrefix(note, "RUNS") {
			note = w.paint(red, note)
		}
		lines = append(lines, fmt.Sprintf("  %-*s %9s  %s  %s", labelWidth, cutTo(b.label, labelWidth), duration(b.took), b.draw(first, end), note))
		lines = append(lines, b.words...)
	}
	return lines
}

// barsOf are the steps, each with the plugins that ran in it.
func barsOf(box *why.Sandbox, o *recorder.Operation) []bar {
	var bars []bar
	runs := o.Runs
	steps := o.Steps
	if o.Verb == recorder.Add && len(box.Steps) > len(steps) {
		steps = box.Steps
	}
	if o.Verb != recorder.Add {
		steps = nil // those of a DEL are its ADD's
	}
	for i, step := range steps {
		bars = append(bars, bar{label: step.Step, start: step.Start, took: step.Took})
		for len(runs) > 0 && (i == len(steps)-1 || runs[0].Start.Before(steps[i+1].Start)) {
			bars = append(bars, barOf(&runs[0]))
			runs = runs[1:]
		}
	}
	for i := range runs {
		bars = append(bars, barOf(&runs[i]))
	}
	if o.MoreRuns > 0 {
		bars = append(bars, bar{label: fmt.Sprintf("  %d more runs", o.MoreRuns), start: o.Start})
	}
	return bars
}

// barOf is the bar of a plugin's run, with the plugin's words if it failed.
func barOf(run *recorder.Run) bar {
	b := bar{label: "  " + harmless(run.Type) + " " + run.Command, start: run.Start, took: run.Took, note: "executed"}
	if run.Builtin {
		b.note = "built in"
	}
	if run.Running {
		b.note = "RUNS"
	}
	if run.Err == "" {
		return b
	}
	b.note = "FAILED"
	b.words = wrap("      ", shortened(words(run)), 2)
	if harmless(run.Stderr) != "" {
		b.words = append(b.words, wrap("      ", "on standard error: "+quoted(run.Stderr), 2)...)
	}
	return b
}

// words are what a plugin that failed said, quoted: its CNI error if it printed one,
// or else how it ended.
func words(run *recorder.Run) string {
	var said struct {
		Code         uint
		Msg, Details string
	}
	if json.Unmarshal(run.Stdout, &said) == nil && said.Msg+said.Details != "" {
		text := said.Msg
		if said.Details != "" {
			text += "; " + said.Details
		}
		return fmt.Sprintf("it said: %s (code %d)", quoted(text), said.Code)
	}
	return "error: " + quoted(run.Err)
}

func quoted(text string) string { return `"` + harmless(text) + `"` }

// draw draws a bar on the time from first to end. None is shorter than a character.
func (b bar) draw(first, end time.Time) string {
	total := max(end.Sub(first).Seconds(), 1e-9)
	from := int(b.start.Sub(first).Seconds() / total * barWidth)
	length := int(math.Round(b.took / total * barWidth))
	from = min(max(from, 0), barWidth-1)
	length = min(max(length, 1), barWidth-from)
	return "|" + strings.Repeat(" ", from) + strings.Repeat("=", length) + strings.Repeat(" ", barWidth-from-length) + "|"
}
