package history_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/integration/history"
)

// What is written is what is read; a last line that a kill cut off is left out.
func TestReadsWhatWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history.jsonl")
	r, err := history.NewRecorder(path)
	if err != nil {
		t.Fatal(err)
	}
	s := newStory()
	s.up(pod, id)
	s.down(pod, id)
	s.end("nothing")
	for _, e := range s.events {
		r.Add(e)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteString(`{"time":"2026-`); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := history.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// JSON texts are written without spaces.
	var want, have bytes.Buffer
	for i := range s.events {
		if err := json.NewEncoder(&want).Encode(s.events[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i := range got {
		if err := json.NewEncoder(&have).Encode(got[i]); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want.String(), have.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// replayed says which rules the histories in testdata break; those that are not here
// break none. Most are of mutants (TestCheckerFindsMutants); unmap-before-sync is from
// before Unmap waited for the first look at the table.
var replayed = map[string][]history.Rule{
	"add-after-del.jsonl":        {history.AddWithoutDel, history.AfterRemoval},
	"dropped-del.jsonl":          {history.AddWithoutDel},
	"earlier-answer.jsonl":       {history.ResultOfAnother, history.AddressTwice},
	"element-left.jsonl":         {history.HostPortLeft},
	"forgotten-hostports.jsonl":  {history.HostPortLost},
	"freed-addresses.jsonl":      {history.AddressTwice},
	"late-unmap.jsonl":           {history.HostPortLeft},
	"lost-write.jsonl":           {history.DelOfAnother, history.HostPortLost, history.NetworkLost},
	"record-first.jsonl":         {history.DelOfAnother},
	"stale-state.jsonl":          {history.HostPortLost, history.NetworkLost},
	"todays-configuration.jsonl": {history.DelOfAnother},
	"unmap-before-sync.jsonl":    {history.HostPortLeft, history.HostPortLost, history.NetworkLost},
}

// Histories that were recorded on nodes are judged as they were when they were recorded.
func TestReplay(t *testing.T) {
	files, err := filepath.Glob("testdata/*.jsonl")
	if err != nil || len(files) == 0 {
		t.Fatalf("no histories: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			events, err := history.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			rules := make(map[history.Rule]bool)
			found := history.Check(events)
			for _, v := range found {
				rules[v.Rule] = true
			}
			want := make(map[history.Rule]bool)
			for _, rule := range replayed[filepath.Base(file)] {
				want[rule] = true
			}
			if diff := cmp.Diff(want, rules); diff != "" {
				t.Errorf("rules (-want +got):\n%s\n%s", diff, report(events, found))
			}
		})
	}
}

// The report of a soak has its counts, and its plot is XML.
func TestSummary(t *testing.T) {
	s := newStory()
	s.up(pod, id)
	s.add(history.Event{Kind: history.Sampled, Sample: map[string]float64{history.SampleFDs: 24}})
	s.add(history.Event{Kind: history.DaemonKilled, Daemon: "crinetd"})
	s.down(pod, id)
	s.end()
	summary := history.Summarize(s.events)
	got := []int{summary.Up, summary.Removed, summary.Adds, summary.Dels, summary.Kills["crinetd"], summary.AddsFailed + summary.DelsFailed + summary.CutOff}
	if diff := cmp.Diff([]int{1, 1, 1, 1, 1, 0}, got); diff != "" {
		t.Errorf("pods, removals, ADD, DEL, kills, failures (-want +got):\n%s", diff)
	}
	if text := summary.Markdown("soak", "soak.svg", 0); !bytes.Contains(text, []byte("| descriptors | 24 | 24 | 24 | 24 | 24 |")) {
		t.Errorf("no descriptors in\n%s", text)
	}
	decoder := xml.NewDecoder(bytes.NewReader(summary.SVG("soak")))
	for {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
