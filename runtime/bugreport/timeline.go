package bugreport

import (
	"fmt"
	"time"

	"github.com/crinet-project/crinet/runtime/recorder"
)

// The timeline's measures, in pixels of the picture.
const (
	labelWidth = 230
	chartWidth = 760
	rowHeight  = 18
	headHeight = 22
	leastBar   = 4
)

// maxRows is how many pods the timeline shows: those of the newest operations.
const maxRows = 60

// Timeline is the picture of the pods over time: a row a pod, a bar an operation.
type Timeline struct {
	Width, Height int
	Begin, End    time.Time
	Rows          []Row
	Ticks         []Tick
	More          int // pods that are left out
}

// Row is one pod of the timeline.
type Row struct {
	Y, TextY, LineY int
	Pod             string
	Bars            []Bar
}

// Bar is one operation.
type Bar struct {
	X, Width float64
	Class    string // add, del, check, refused, failed
	Title    string
}

// Tick is a mark on the axis of time.
type Tick struct {
	X      float64
	Text   string
	Anchor string // of SVG: start, middle or end
}

// anchor keeps the text of the first and the last of so many ticks inside.
func anchor(i, of int) string {
	switch i {
	case 0:
		return "start"
	case of - 1:
		return "end"
	}
	return "middle"
}

// newTimeline draws operations, which come the newest first; nil without any.
func newTimeline(all []recorder.Operation) *Timeline {
	if len(all) == 0 {
		return nil
	}
	rows := make(map[string]int)
	left := make(map[string]bool)
	t := &Timeline{Width: labelWidth + chartWidth + 10}
	var shown []recorder.Operation
	for _, o := range all {
		pod := o.Pod.String()
		if _, known := rows[pod]; !known {
			if len(rows) == maxRows {
				left[pod] = true
				continue
			}
			y := headHeight + len(rows)*rowHeight
			t.Rows = append(t.Rows, Row{Y: y + 3, TextY: y + 13, LineY: y + rowHeight, Pod: pod})
			rows[pod] = len(rows)
		}
		shown = append(shown, o)
	}
	t.More, t.Height = len(left), headHeight+len(t.Rows)*rowHeight+4
	t.span(shown)
	for _, o := range shown {
		row := &t.Rows[rows[o.Pod.String()]]
		row.Bars = append(row.Bars, t.bar(&o))
	}
	const ticks = 5
	for i := range ticks {
		at := t.Begin.Add(t.End.Sub(t.Begin) * time.Duration(i) / (ticks - 1))
		t.Ticks = append(t.Ticks, Tick{X: t.x(at), Text: at.UTC().Format("15:04:05"), Anchor: anchor(i, ticks)})
	}
	return t
}

// span sets the timeline's begin and end.
func (t *Timeline) span(all []recorder.Operation) {
	t.Begin, t.End = all[0].Start, all[0].Start
	for _, o := range all {
		if o.Start.Before(t.Begin) {
			t.Begin = o.Start
		}
		if end := o.Start.Add(seconds(o.Took)); end.After(t.End) {
			t.End = end
		}
	}
	if least := time.Second; t.End.Sub(t.Begin) < least {
		t.End = t.Begin.Add(least)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func (t *Timeline) x(at time.Time) float64 {
	return labelWidth + float64(at.Sub(t.Begin))/float64(t.End.Sub(t.Begin))*(chartWidth-leastBar)
}

func (t *Timeline) bar(o *recorder.Operation) Bar {
	from, to := t.x(o.Start), t.x(o.Start.Add(seconds(o.Took)))
	b := Bar{X: from, Width: max(to-from, leastBar), Class: class(o)}
	b.Title = fmt.Sprintf("%s %s, %s, asked by %s", o.Verb, clock(o.Start), milliseconds(o.Took), o.By)
	for _, r := range o.Runs {
		b.Title += fmt.Sprintf("\n  %s %s: %s", r.Type, r.Command, milliseconds(r.Took))
	}
	if o.Err != "" {
		b.Title += "\n" + o.Err
	}
	return b
}

// class is how an operation looks.
func class(o *recorder.Operation) string {
	switch {
	case o.Failed():
		return "failed"
	case o.Verb == recorder.Add:
		return "add"
	case o.Verb == recorder.Del:
		return "del"
	}
	return "check"
}
