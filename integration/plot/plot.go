// Package plot draws the measurements of benchmarks and of the soak as SVG images that
// can be read in light and dark.
package plot

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"time"
)

// Colors of text and axes, which every image begins its style with.
const (
	Style = `text { font: 13px sans-serif; fill: #24292f }
.small { font-size: 11px; fill: #57606a }
.axis { stroke: #d0d7de }
`
	DarkStyle = `text { fill: #e6edf3 }
.small { fill: #9198a1 }
.axis { stroke: #3d444d }
`
)

// The measures of a panel, in the image's own units.
const (
	width, left, right = 860, 60, 20
	panelHeight        = 120
	panelDistance      = 190
	top                = 64
)

// lineStyle has a color for each series of a panel, in their order.
const lineStyle = `polyline { fill: none; stroke-width: 1.5 }
.s0 { stroke: #0969da } .s1 { stroke: #cf222e } .s2 { stroke: #1a7f37 } .s3 { stroke: #8250df }
rect.s0 { fill: #0969da } rect.s1 { fill: #cf222e } rect.s2 { fill: #1a7f37 } rect.s3 { fill: #8250df }
`

// Point is a value at a time after the begin.
type Point struct {
	At    time.Duration
	Value float64
}

// Series is one line of a panel.
type Series struct {
	Name   string
	Points []Point
}

// Panel has up to four lines over one axis from 0.
type Panel struct {
	Title  string
	Series []Series
}

// Lines draws panels below each other over one axis of time.
func Lines(title string, panels []Panel) []byte {
	longest := time.Second
	for _, p := range panels {
		for _, s := range p.Series {
			for _, point := range s.Points {
				longest = max(longest, point.At)
			}
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", width, top+panelDistance*len(panels), escape(title))
	b.WriteString("<style>\n" + Style + lineStyle + "@media (prefers-color-scheme: dark) {\n" + DarkStyle + "}\n</style>\n")
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"20\">%s</text>\n", left, escape(title))
	for i, p := range panels {
		p.draw(&b, top+panelDistance*i, longest)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}

func (p Panel) draw(b *bytes.Buffer, y int, longest time.Duration) {
	highest := 1.0
	for _, s := range p.Series {
		for _, point := range s.Points {
			highest = max(highest, point.Value)
		}
	}
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\">%s</text>\n", left, y-8, escape(p.Title))
	x := left + 8*len(p.Title) + 20
	for i, s := range p.Series {
		fmt.Fprintf(b, `<rect class="s%d" x="%d" y="%d" width="12" height="12"/><text class="small" x="%d" y="%d">%s</text>`+"\n", i, x, y-18, x+17, y-8, escape(s.Name))
		x += 38 + 6*len(s.Name)
	}
	bottom := float64(y + panelHeight)
	scale := panelHeight / highest
	for at, step := 0.0, TickStep(highest); at <= highest; at += step {
		fmt.Fprintf(b, `<path class="axis" d="M%d %.1f H%d"/><text class="small" text-anchor="end" x="%d" y="%.1f">%g</text>`+"\n",
			left, bottom-at*scale, width-right, left-6, bottom-at*scale+4, at)
	}
	unit := (width - left - right) / longest.Minutes()
	for at, step := 0.0, TickStep(longest.Minutes()); at <= longest.Minutes(); at += step {
		fmt.Fprintf(b, `<text class="small" x="%.1f" y="%.1f">%g min</text>`+"\n", left+at*unit, bottom+16, math.Round(at*100)/100)
	}
	for i, s := range p.Series {
		fmt.Fprintf(b, `<polyline class="s%d" points="`, i)
		for _, point := range s.Points {
			fmt.Fprintf(b, "%.1f,%.1f ", left+point.At.Minutes()*unit, bottom-point.Value*scale)
		}
		b.WriteString("\"/>\n")
	}
}

// TickStep is a round number that divides an axis of that length into five to ten parts.
func TickStep(longest float64) float64 {
	step := math.Pow(10, math.Floor(math.Log10(longest)))
	for longest/step < 5 {
		step /= 2
	}
	return step
}
