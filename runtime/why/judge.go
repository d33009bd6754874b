package why

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
)

// slow is how long an operation may be under way before something is amiss.
const slow = 10 * time.Second

// hangs is said of a plugin that has been running for so long.
const hangs = " and hangs"

// judge finds what is amiss with the newest sandbox, and what to do.
func (s *Story) judge() {
	newest := &s.Sandboxes[0]
	s.Verdict, s.Fault, s.Mends = newest.judge()
	if s.Verdict == UnderWay && !strings.Contains(s.Fault, hangs) {
		s.Mends = []string{"Nothing yet: ask again in a few seconds."}
	}
	if s.Fault != "" && len(s.Mends) == 0 {
		s.Mends = hint(s.Fault, newest)
	}
}

func (s *Sandbox) judge() (verdict Verdict, fault string, mends []string) {
	if o := s.underWay(); o != nil {
		return UnderWay, s.waiting(o), nil
	}
	run := s.last(recorder.RunPodSandbox)
	add := s.last(recorder.Add)
	switch {
	case s.ID == "" && run != nil:
		if strings.Contains(run.Err, "pod refused") || strings.Contains(run.Err, "network not ready") {
			return Refused, run.Err, nil
		}
		return Failed, run.Err, nil
	case s.record != nil:
		return s.judgeStanding()
	case add != nil && add.State == recorder.CutOff:
		return CutOff, "crinetd ended while the ADD was under way; the next crinetd undoes what was done", nil
	case add != nil && add.Err != "":
		return Failed, add.Err, nil
	case s.State == string(journal.Detaching) && s.undo != "":
		return Staying, s.undo, nil
	case s.State == string(journal.Detaching):
		return Staying, "its network is to be removed, and crinetd has not managed to yet", nil
	case s.State == string(journal.Attaching):
		return UnderWay, "its ADD is under way", nil
	case run != nil:
		return Failed, run.Err, nil
	}
	if del := s.last(recorder.Del); del != nil && del.Failed() {
		if del.State == recorder.CutOff {
			return CutOff, "crinetd ended while the DEL was under way", nil
		}
		return Staying, del.Err, nil
	}
	return Removed, "", nil
}

// judgeStanding judges a sandbox whose network should stand.
func (s *Sandbox) judgeStanding() (verdict Verdict, fault string, mends []string) {
	var amiss []string
	for _, f := range s.Findings {
		if !f.OK {
			amiss = append(amiss, f.String())
			for line := range strings.SplitSeq(f.Mend, "\n") {
				if !slices.Contains(mends, line) {
					mends = append(mends, line)
				}
			}
		}
	}
	slices.SortStableFunc(mends, func(a, b string) int { return rank(a) - rank(b) })
	if len(amiss) > 0 {
		return Broken, strings.Join(amiss, "; "), mends
	}
	if s.Drift != nil && s.Drift.Ended.IsZero() && strings.Contains(s.Drift.What, "CHECK") {
		return Broken, s.Drift.What, nil
	}
	if check := s.last(recorder.Check); check != nil && check.Err != "" {
		return Broken, "CHECK: " + check.Err, nil
	}
	if run := s.last(recorder.RunPodSandbox); run != nil && run.Start.After(s.Operations[0].Start) {
		return Failed, run.Err, nil
	}
	return Stands, "", nil
}

// rank orders mends: alternatives come last.
func rank(mend string) int {
	if strings.HasPrefix(mend, "or ") {
		return 1
	}
	return 0
}

// underWay returns the operation that is under way; nil if none is.
func (s *Sandbox) underWay() *recorder.Operation {
	for i := range slices.Backward(s.Operations) {
		if s.Operations[i].State == recorder.UnderWay {
			return &s.Operations[i]
		}
	}
	return nil
}

// waiting says what an operation under way waits for, if it takes long.
func (s *Sandbox) waiting(o *recorder.Operation) string {
	took := time.Duration(o.Took * float64(time.Second)).Round(100 * time.Millisecond)
	what := fmt.Sprintf("its %s has been under way for %s", o.Verb, took)
	for _, run := range o.Runs {
		if run.Running {
			since := time.Duration(run.Took * float64(time.Second)).Round(100 * time.Millisecond)
			what += fmt.Sprintf("; plugin %s has been running %s for %s", run.Type, run.Command, since)
			if since >= slow {
				what += hangs
			}
		}
	}
	return what
}
