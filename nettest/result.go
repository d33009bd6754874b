package nettest

import (
	"fmt"
	"strings"
	"time"
)

// Status is how a step ended.
type Status string

// The ends of a step.
const (
	Passed  Status = "passed"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Result is what one step has shown.
type Result struct {
	Step   string `json:"step"`
	Status Status `json:"status"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
	// Note says what was seen, or why the step was skipped.
	Note string `json:"note,omitempty"`
	// Fault says what failed; nil unless Status is Failed.
	Fault *Fault `json:"fault,omitempty"`
}

// Fault is what failed in a step. Foreign text in it has no control characters.
type Fault struct {
	// Sent says what was sent from where to where, or done; Came what came back.
	Sent string `json:"sent,omitempty"`
	Came string `json:"came"`
	// Lost says where the packet was lost, as far as that can be known.
	Lost string `json:"lost,omitempty"`
	// Do says what to do, the likeliest first.
	Do []string `json:"do,omitempty"`
	// Also are the other ways of the step that failed.
	Also []string `json:"also,omitempty"`
}

// String is the fault in some lines.
func (f *Fault) String() string {
	var lines []string
	add := func(label, text string) {
		if text != "" {
			lines = append(lines, fmt.Sprintf("%-6s%s", label, text))
		}
	}
	add("sent:", f.Sent)
	add("came:", f.Came)
	add("lost:", f.Lost)
	for _, do := range f.Do {
		add("do:", do)
	}
	if len(f.Also) > 0 {
		add("also:", strings.Join(f.Also, "; "))
	}
	return strings.Join(lines, "\n")
}

// timed runs a step and takes its time.
func timed(name string, step func() Result) Result {
	start := time.Now()
	r := step()
	r.Step, r.Seconds = name, time.Since(start).Seconds()
	return r
}

// Plain makes text of others fit for a terminal: control characters become spaces.
func Plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
}
