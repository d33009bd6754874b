// Package why tells the story of a pod's network: what was done for it, what failed,
// what of it stands now, and what to do. It puts together what the recorder, the
// journal and package inspect know; crinetd tells it, and crinetctl by itself from the
// recorder's files where no crinetd runs.
package why

import (
	"context"
	"errors"
	"time"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/recorder"
)

// Verdict is how a pod's network is, by its newest sandbox.
type Verdict string

// The verdicts. A pod whose network Stands or was Removed is well.
const (
	Stands   Verdict = "stands"
	Removed  Verdict = "removed"
	UnderWay Verdict = "under way"
	Refused  Verdict = "refused"
	Failed   Verdict = "failed"
	CutOff   Verdict = "cut off"
	// Broken is a network that was made, and of which a part is gone.
	Broken Verdict = "broken"
	// Staying is a network whose removal fails.
	Staying Verdict = "not removed"
)

// Story is what is known of a pod's network.
type Story struct {
	// Told says by whom: crinetd, or the files that were read without it.
	Told string `json:"told"`
	// Candidates are the pods that were meant, if that is not one. The other fields are
	// empty then.
	Candidates []Candidate `json:"candidates,omitempty"`

	Pod     journal.Pod `json:"pod"`
	Verdict Verdict     `json:"verdict"`
	// Fault is what is amiss, Mends what to do about it, the first one first. Both are
	// empty if all is well.
	Fault string   `json:"fault,omitempty"`
	Mends []string `json:"mends,omitempty"`
	// Sandboxes are the pod's, the newest first. Attempts that were refused before there
	// was a sandbox are among them.
	Sandboxes []Sandbox `json:"sandboxes"`
}

// OK says whether the network stands, or was removed.
func (s *Story) OK() bool { return s.Verdict == Stands || s.Verdict == Removed }

// Candidate is a pod that may be meant.
type Candidate struct {
	Pod     journal.Pod `json:"pod"`
	Sandbox string      `json:"sandbox,omitempty"`
	// Last is when something was last asked for it.
	Last time.Time `json:"last"`
}

// Sandbox is one sandbox of a pod, or an attempt to make one.
type Sandbox struct {
	// ID is empty for attempts that were refused before there was one.
	ID     string    `json:"id,omitempty"`
	IfName string    `json:"ifName,omitempty"`
	NetNS  string    `json:"netns,omitempty"`
	Start  time.Time `json:"start"`
	// Network is the network's name; File and Selected are its configuration and why it
	// was selected, as far as that is recorded.
	Network  string `json:"network,omitempty"`
	File     string `json:"file,omitempty"`
	Selected string `json:"selected,omitempty"`
	// State is the journal's; empty if it has no record.
	State string `json:"state,omitempty"`
	// Adopted: the runtime networked the pod before crinetd came.
	Adopted   bool     `json:"adopted,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	HostPorts []string `json:"hostPorts,omitempty"`
	// Steps are those of the lifecycle.
	Steps []recorder.Step `json:"steps,omitempty"`
	// Operations are those that are recorded, in the order in which they began.
	Operations []recorder.Operation `json:"operations,omitempty"`
	// Findings compare the network with the kernel, for the pod's newest sandbox if its
	// network should stand.
	Findings []inspect.Finding `json:"findings,omitempty"`
	// Drift is what crinetd noticed last by itself; nil if it noticed nothing.
	Drift *Drift `json:"drift,omitempty"`

	record *journal.Record // what should stand; nil if nothing should
	undo   string          // why the record is not undone yet
}

// Drift is a time in which a network was not as it was made.
type Drift struct {
	Since time.Time `json:"since"`
	// Ended is zero while it goes on.
	Ended time.Time `json:"ended,omitzero"`
	// What says what was amiss and what crinetd did about it.
	What string `json:"what"`
}

// ErrUnknown is the error for a pod that nobody knows.
var ErrUnknown = errors.New("no operation and no network of such a pod is known; " +
	"the last 1,000 operations are kept, crinetctl pods lists the pods that have a network, and pods in the node's own network have none of crinet's")

// Sources are what a story is made of.
type Sources struct {
	// Told is who tells.
	Told string
	// Find returns operations.
	Find func(recorder.Query) ([]recorder.Operation, error)
	// Records returns the journal's; nil where it cannot be read.
	Records func() ([]*journal.Record, error)
	// Stands says whether a record's attachment should stand; nil if that of each does
	// that the journal has as attached.
	Stands func(*journal.Record) bool
	// Inspect compares an attachment with the kernel.
	Inspect func(context.Context, *journal.Record) []inspect.Finding
	// Drift returns what was noticed of a record's network; nil where nobody looks.
	Drift func(*journal.Record) *Drift
}
