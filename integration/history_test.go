package integration_test

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/crinet-project/crinet/integration/history"
	"github.com/crinet-project/crinet/integration/node"
)

// recording is the history of a node while a test runs. Its methods may be called on
// nil: nothing is recorded.
type recording struct {
	*history.Recorder
	path      string
	watcher   *history.Watcher
	collector *history.Collector
	sampler   *sampler // nil unless a report is asked for
}

// recordHistory records from now on what happens on the node and what the client asks
// for, until checkHistory. It must be called before the first pod.
func (n *testNode) recordHistory(client *node.Client) {
	n.t.Helper()
	file, err := os.CreateTemp("", "crinet-history-*.jsonl")
	n.ok(err)
	n.ok(file.Close())
	h := &recording{path: file.Name()}
	h.Recorder, err = history.NewRecorder(h.path)
	n.ok(err)
	h.watcher, err = h.Watch(history.NamespaceOf(n.PID()))
	n.ok(err)
	h.collector = h.Collect(n.Path("/var/lib/crinet"), n.Path(scriptDir))
	client.Runtime = h.Client(client.Runtime)
	n.history = h
	if soakReport() != "" {
		h.sampler = n.startSampler(h.Recorder)
	}
	n.t.Cleanup(func() {
		if n.history != nil { // the test failed before its check
			n.t.Logf("the history is kept in %s", h.path)
			n.ok(n.endHistory(nil))
		}
	})
}

// endHistory ends the recording.
func (n *testNode) endHistory(left []string) error {
	h := n.history
	n.history = nil
	h.sampler.close()
	h.watcher.Close()
	if err := h.collector.Close(); err != nil {
		return err
	}
	h.Add(history.Event{Kind: history.End, Left: left})
	return h.Close()
}

// violations ends the recording and returns what breaks the model. All pods must have
// been removed.
func (n *testNode) violations() (events []history.Event, found []history.Violation, path string) {
	n.t.Helper()
	path = n.history.path
	n.ok(n.endHistory(n.leftovers(n.forgotten)))
	events, err := history.ReadFile(path)
	n.ok(err)
	return events, history.Check(events), path
}

// checkHistory ends the recording and holds it against the model. The history of a
// test that fails is kept.
func (n *testNode) checkHistory() {
	n.t.Helper()
	events, found, path := n.violations()
	n.t.Logf("history: %d events", len(events))
	n.reportSoak(events, len(found))
	if len(found) > 0 {
		var report strings.Builder
		history.Report(&report, events, found)
		n.t.Errorf("the history breaks the model in %d places; it is kept in %s\n%s", len(found), path, report.String())
		return
	}
	n.putAway(path)
}

// historiesVariable names an environment variable: a folder where the histories of all
// tests are kept, also of those that pass, by the names of the tests.
const historiesVariable = "CRINET_TEST_HISTORIES"

// putAway keeps the history of a test that passed if that is asked for, and removes it
// otherwise.
func (n *testNode) putAway(path string) {
	n.t.Helper()
	if dir := os.Getenv(historiesVariable); dir != "" {
		text, err := os.ReadFile(path)
		n.ok(err)
		n.ok(os.WriteFile(filepath.Join(dir, strings.ReplaceAll(n.t.Name(), "/", "-")+".jsonl"), text, 0o644))
	}
	n.ok(os.Remove(path))
}

func (h *recording) kills(daemon string) {
	if h != nil {
		h.Killed(daemon)
	}
}

func (h *recording) started(daemon string) {
	if h != nil {
		h.Started(daemon)
	}
}
