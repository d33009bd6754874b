package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

// A story fits on the first screen of a terminal, so that the fault and what to do
// about it are seen at once.
const (
	columns = 80
	rows    = 23 // the prompt takes one
)

// screen is a story as lines.
type screen struct {
	head  []string
	story []string // cut where the page is too long
	tail  []string
}

func (w *whyOptions) printStory(s *why.Story, now time.Time) error {
	if len(s.Candidates) > 0 {
		t := newTable(w.stdout)
		t.row("POD", "UID", "SANDBOX", "LAST")
		for _, c := range s.Candidates {
			t.row(harmless(c.Pod.String()), harmless(c.Pod.UID), orNone(short(c.Sandbox)), ago(c.Last, now)+" ago")
		}
		return t.Flush()
	}
	p := screen{head: w.head(s, now), tail: w.tail(s)}
	if w.all {
		for i := range s.Sandboxes {
			p.story = append(p.story, w.sandbox(s, i, now)...)
		}
	} else {
		p.story = append(w.sandbox(s, 0, now), others(s, now)...)
		p.fit()
	}
	for _, lines := range [][]string{p.head, p.story, p.tail} {
		for _, line := range lines {
			if _, err := fmt.Fprintln(w.stdout, strings.TrimRight(line, " ")); err != nil {
				return err
			}
		}
	}
	return nil
}

// fit cuts the story where the page is longer than a screen: first bars of what did
// not fail, then the end.
func (p *screen) fit() {
	const more = "  … (--all shows the rest)"
	room := max(rows-len(p.head)-len(p.tail), 4)
	if len(p.story) <= room {
		return
	}
	for i := len(p.story) - 1; i >= 0 && len(p.story) >= room; i-- {
		if isBar(p.story[i]) && !strings.Contains(p.story[i], "FAILED") && !strings.Contains(p.story[i], "RUNS") {
			p.story = slices.Delete(p.story, i, i+1)
		}
	}
	if len(p.story) >= room {
		p.story = append(p.story[:room-2], "")
	}
	p.story = slices.Insert(p.story, len(p.story)-1, more)
}

// head is the verdict and the fault.
func (w *whyOptions) head(s *why.Story, now time.Time) []string {
	newest := &s.Sandboxes[0]
	verdict, colour := verdictText(s), red
	if s.OK() {
		colour = green
	}
	title := fmt.Sprintf("Pod %s: ", harmless(s.Pod.String()))
	lines := []string{title + w.paint(colour, verdict) + ", " + ago(when(newest), now) + " ago"}
	if s.Told != "crinetd" {
		lines = append(lines, wrap("", fmt.Sprintf("No crinetd answers: this is from the files in %s. hostPorts were not looked at.", s.Told), 2)...)
	}
	if s.Fault != "" {
		lines = append(lines, wrap("  ", harmless(shortened(s.Fault)), 3)...)
	}
	return append(lines, "")
}

// Parts of errors that the rest of the screen says as well, and ids that crictl shows
// shorter.
var (
	whose   = regexp.MustCompile(`^(pod refused: )?(pod \S+: )?(reserve the hostPorts of pod \S+: )?(network "[^"]*": (ADD|DEL|CHECK) of sandbox [0-9a-f]+: )?(plugin type="[^"]*" (name="[^"]*" )?failed \((add|delete|check)\): )?`)
	longIDs = regexp.MustCompile(`\b([0-9a-f]{13})[0-9a-f]{51}\b`)
)

// shortened is an error as it is told beside the sandbox, network and plugin that it
// is about.
func shortened(fault string) string {
	return longIDs.ReplaceAllString(whose.ReplaceAllString(fault, ""), "$1")
}

// when is when the last thing happened to a sandbox.
func when(s *why.Sandbox) time.Time {
	at := s.Start
	for _, o := range s.Operations {
		if o.Start.After(at) {
			at = o.Start
		}
	}
	return at
}

func verdictText(s *why.Story) string {
	switch s.Verdict {
	case why.Stands:
		return "its network stands"
	case why.Removed:
		return "its network was removed"
	case why.Refused:
		return "it was REFUSED"
	case why.Broken:
		return "its network does NOT STAND"
	case why.Staying:
		return "its network is NOT REMOVED"
	case why.UnderWay:
		return "its network is UNDER WAY"
	case why.CutOff:
		return "its network was CUT OFF"
	}
	return "its network FAILED"
}

// tail is what to do.
func (w *whyOptions) tail(s *why.Story) []string {
	lines := []string{"What to do"}
	if len(s.Mends) == 0 {
		return append(lines, "  Nothing.")
	}
	limit := 2
	if isCommand(s.Mends[0]) { // a line each
		limit = 3
	}
	for i, mend := range s.Mends {
		if i == limit && !w.all {
			return append(lines, fmt.Sprintf("  … and %d more: --all shows them.", len(s.Mends)-i))
		}
		if isCommand(mend) {
			lines = append(lines, "  "+harmless(mend)) // on one line, to be copied
			continue
		}
		most := 5
		if i > 0 {
			most = 3
		}
		lines = append(lines, wrap("  ", harmless(shortened(mend)), most)...)
	}
	return lines
}

// isCommand says whether a mend is a command line.
func isCommand(mend string) bool {
	first, _, _ := strings.Cut(mend, " ")
	return slices.Contains([]string{"ip", "bridge", "nsenter", "sysctl"}, first)
}

// others are the pod's older sandboxes, in a line.
func others(s *why.Story, now time.Time) []string {
	if len(s.Sandboxes) < 2 {
		return nil
	}
	failed := 0
	for i := range s.Sandboxes[1:] {
		if o := s.Sandboxes[i+1].Decisive(); o != nil && o.Failed() {
			failed++
		}
	}
	oldest := s.Sandboxes[len(s.Sandboxes)-1]
	return []string{fmt.Sprintf("Before that: %d more since %s ago, %d of them failed (--all).", len(s.Sandboxes)-1, ago(oldest.Start, now), failed), ""}
}

// sandbox tells of the nth sandbox.
func (w *whyOptions) sandbox(s *why.Story, n int, now time.Time) []string {
	box := &s.Sandboxes[n]
	var lines []string
	if box.ID != "" {
		line := "Sandbox " + short(harmless(box.ID))
		if len(box.Addresses) > 0 {
			line += ", " + strings.Join(box.Addresses, ", ")
		}
		if len(box.HostPorts) > 0 {
			line += ", hostPorts " + strings.Join(box.HostPorts, ", ")
		}
		lines = append(lines, wrap("", line, 2)...)
	}
	if box.Network != "" {
		line := "Network " + harmless(box.Network)
		if box.File != "" {
			line += fmt.Sprintf(" (%s): %s", harmless(box.File), harmless(box.Selected))
		}
		lines = append(lines, wrap("", line, 2)...)
	}
	switch decisive := box.Decisive(); {
	case box.Adopted && decisive == nil:
		lines = append(lines, "The runtime networked the pod before crinetd came.")
	case w.all:
		for i := range box.Operations {
			lines = append(lines, w.operation(box, &box.Operations[i], now)...)
		}
	case decisive != nil:
		lines = append(lines, w.operation(box, decisive, now)...)
		for i := range box.Operations {
			if o := &box.Operations[i]; o != decisive && o.Verb != recorder.Check {
				lines = append(lines, w.title(o, now))
			}
		}
	}
	lines = append(lines, parts(box)...)
	if d := box.Drift; d != nil {
		lines = append(lines, wrap("", noticed(d, now), 3)...)
	}
	return append(lines, "")
}

// noticed is what crinetd noticed by itself.
func noticed(d *why.Drift, now time.Time) string {
	if d.Ended.IsZero() {
		return fmt.Sprintf("crinetd noticed %s ago: %s.", ago(d.Since, now), harmless(d.What))
	}
	return fmt.Sprintf("It was not as it was made from %s to %s ago: %s.", ago(d.Since, now), ago(d.Ended, now), harmless(d.What))
}

// parts says what stands of a sandbox.
func parts(box *why.Sandbox) []string {
	good := 0
	for _, f := range box.Findings {
		if f.OK {
			good++
		}
	}
	switch {
	case len(box.Findings) == 0:
		return nil
	case good == len(box.Findings):
		seen := make(map[string]bool)
		var names []string
		for _, f := range box.Findings {
			if !seen[f.Part] {
				seen[f.Part] = true
				names = append(names, f.Part)
			}
		}
		return wrap("", fmt.Sprintf("All parts stand now (%d): %s.", good, strings.Join(names, ", ")), 3)
	}
	return []string{fmt.Sprintf("Of %d parts %d stand now; what does not is above.", len(box.Findings), good)}
}

// title is an operation in a line.
func (w *whyOptions) title(o *recorder.Operation, now time.Time) string {
	what := fmt.Sprintf("%s %s ago, %s", o.Verb, ago(o.Start, now), askedBy(o.By))
	if o.Verb != recorder.RunPodSandbox && o.State != recorder.CutOff {
		what += ", " + duration(o.Took)
	}
	if o.Times > 1 {
		what += fmt.Sprintf(", %d times", o.Times)
	}
	switch {
	case o.State != recorder.Done:
		what += ": " + w.paint(red, o.State)
	case o.Err != "":
		what += ": " + w.paint(red, "failed")
	}
	return what
}

func askedBy(by string) string {
	switch by {
	case recorder.ByCRI:
		return "asked by kubelet or crictl"
	case recorder.ByRuntime:
		return "asked by the runtime"
	case recorder.ByTrial:
		return "a trial of crinetd's"
	}
	return "by crinetd itself"
}

// duration is a time in seconds for people.
func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 10*time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	case d < time.Second:
		d = d.Round(100 * time.Microsecond)
	default:
		d = d.Round(10 * time.Millisecond)
	}
	return d.String()
}

func ago(at, now time.Time) string {
	d := max(now.Sub(at), 0)
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// harmless makes what somebody else wrote safe to print: on one line, with escapes in
// the place of what could upset a terminal or hide text.
func harmless(text string) string {
	var b strings.Builder
	space := false
	for _, r := range text {
		if r == '\n' || r == '\t' || r == '\r' || r == ' ' {
			space = b.Len() > 0
			continue
		}
		if space {
			b.WriteByte(' ')
			space = false
		}
		if unicode.IsGraphic(r) && r != utf8.RuneError {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// wrap breaks a text at spaces into lines, and cuts what is longer than so many.
func wrap(indent, text string, most int) []string {
	var lines []string
	line := indent
	for _, word := range strings.Fields(text) {
		for utf8.RuneCountInString(word) > columns-len(indent) { // such as a long path
			head := string([]rune(word)[:columns-len(indent)])
			if line != indent {
				lines, line = append(lines, line), indent
			}
			lines = append(lines, indent+head)
			word = word[len(head):]
		}
		switch {
		case line == indent:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns:
			lines, line = append(lines, line), indent+word
		default:
			line += " " + word
		}
	}
	if line != indent {
		lines = append(lines, line)
	}
	if len(lines) > most {
		lines = lines[:most]
		lines[most-1] = cutTo(lines[most-1], columns-2) + " …"
	}
	return lines
}

// cutTo cuts a text after so many characters.
func cutTo(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:max(most-1, 0)]) + "…"
	}
	return text
}
