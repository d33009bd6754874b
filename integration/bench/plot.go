package main

import (
	"bytes"
	"fmt"
	"math"

	"github.com/crinet-project/crinet/integration/plot"
)

// The plot's measures, in its own units.
const (
	plotWidth   = 860
	plotLeft    = 20
	barHeight   = 26
	barDistance = 62
	plotTop     = 64
)

// plotColors are the classes of the phases; they are told apart in light and dark.
var plotColors = map[string]string{
	phaseBefore: "before", phaseProcesses: "processes", phaseADD: "add", phaseAfter: "after",
}

const plotStyle = "<style>\n" + plot.Style + `.before { fill: #8c959f } .processes { fill: #cf222e } .add { fill: #1a7f37 } .after { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
` + plot.DarkStyle + `.before { fill: #6e7681 } .processes { fill: #f85149 } .add { fill: #3fb950 } .after { fill: #484f58 }
}
</style>
`

// plotLines draws timelines below each other as an SVG image.
func plotLines(lines []*timeline) []byte {
	longest := 0.0
	for _, l := range lines {
		longest = math.Max(longest, l.total())
	}
	unit := (plotWidth - 2*plotLeft) / longest
	height := plotTop + barDistance*len(lines) + 24
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="A pod's start and stop, phase by phase">`+"\n",
		plotWidth, height)
	b.WriteString(plotStyle)
	fmt.Fprintf(&b, "<text x=\"%d\" y=\"20\">A pod's start and stop, phase by phase: medians in milliseconds</text>\n", plotLeft)
	x := plotLeft
	for _, name := range []string{phaseBefore, phaseProcesses, phaseADD, phaseAfter} {
		fmt.Fprintf(&b, `<rect class="%s" x="%d" y="32" width="12" height="12"/><text class="small" x="%d" y="42">%s</text>`+"\n",
			plotColors[name], x, x+17, name)
		x += 38 + 6*len(name)
	}
	step := plot.TickStep(longest)
	for at := 0.0; at <= longest; at += step {
		fmt.Fprintf(&b, `<path class="axis" d="M%.1f %d V%d"/><text class="small" x="%.1f" y="%d">%.0f</text>`+"\n",
			plotLeft+at*unit, plotTop, height-20, plotLeft+at*unit, height-6, at)
	}
	for i, l := range lines {
		drawLine(&b, l, plotTop+barDistance*i, unit)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// drawLine draws one timeline: its name, and a bar of its phases.
func drawLine(b *bytes.Buffer, l *timeline, y int, unit float64) {
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\">%s: %.0f ms</text>\n", plotLeft, y+18, l.name, l.total())
	x := float64(plotLeft)
	for _, p := range l.phases {
		took := median(p.took)
		fmt.Fprintf(b, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d"><title>%s: %.1f ms</title></rect>`+"\n",
			plotColors[p.name], x, y+24, took*unit, barHeight, p.name, took)
		x += took * unit
	}
}

// total is the sum of the phases' medians.
func (l *timeline) total() (sum float64) {
	for _, p := range l.phases {
		sum += median(p.took)
	}
	return sum
}
