// Package recorder keeps the last operations on the networks of sandboxes, for people:
// who asked for what, which plugins ran, with what, for how long, and what they said.
//
// # Files
//
// Two files in the state dir, [CurrentFile] and [OlderFile], have a line of JSON for
// each operation. A line is one write(2) without a sync: it survives the end of
// crinetd, kill -9 included, and not a loss of power. ADD, DEL, CHECK and trials have a
// line when they begin as well, so that one that was cut off is seen. When the current
// file has [Keep] operations, or takes as much room as it may have, it replaces the
// older one. A last line that is cut off is left out.
//
// # Bounds
//
// A line has 64 KiB at most: what plugins got and said is cut with a mark. A file has
// 8 MiB at most, and less on a small disk: never more than an eighth of what is free.
// An operation that cannot be written is lost, and no pod hears of it; that is logged
// once and counted. A write waits for the disk no longer than the journal's do, which
// are on the same one.
//
// # Secrets
//
// What plugins got and said passes [Redact] before anything is kept.
package recorder

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/crinet-project/crinet/runtime/journal"
)

// Verbs of operations.
const (
	// RunPodSandbox is a pod that was refused, or whose sandbox failed for another
	// reason than its ADD. A pod that came up has an ADD alone.
	RunPodSandbox = "RunPodSandbox"
	Add           = "ADD"
	Del           = "DEL"
	Check         = "CHECK"
)

// Who asked for an operation.
const (
	ByCRI     = "cri"     // the kubelet or crictl, through crinetd
	ByRuntime = "runtime" // the container runtime, by itself or asked directly
	ByCrinetd = "crinetd" // crinetd's queue or sweeper
	ByTrial   = "trial"   // a trial of the network
)

// States of operations.
const (
	Done     = "done"
	UnderWay = "under way"
	// CutOff is an operation whose crinetd ended before it did.
	CutOff = "cut off"
)

// Operation is one thing that somebody asked of one sandbox.
type Operation struct {
	// ID is unique on the node.
	ID    string `json:"id"`
	State string `json:"state"`
	Verb  string `json:"verb"`
	By    string `json:"by"`

	Pod journal.Pod `json:"pod"`
	// Sandbox is empty for a pod that was refused before it had one.
	Sandbox string `json:"sandbox,omitempty"`
	IfName  string `json:"ifName,omitempty"`
	NetNS   string `json:"netns,omitempty"`
	// Network is the network's name. For an ADD, and a pod without an address, File is its configuration and
	// Selected says why it was selected.
	Network  string `json:"network,omitempty"`
	File     string `json:"file,omitempty"`
	Selected string `json:"selected,omitempty"`
	// HostPorts are those of the pod that crinetd maps.
	HostPorts []string `json:"hostPorts,omitempty"`

	Start time.Time `json:"start"`
	// Took is in seconds.
	Took float64 `json:"took"`
	// Steps are those of the sandbox's lifecycle that are known at the end: three for
	// an ADD, all four for a DEL.
	Steps []Step `json:"steps,omitempty"`
	Runs  []Run  `json:"runs,omitempty"`
	// MoreRuns counts the runs that are left out.
	MoreRuns int `json:"moreRuns,omitempty"`

	// Result is the CNI result of an ADD, Addresses are those in it, with prefix lengths.
	Result    json.RawMessage `json:"result,omitempty"`
	Addresses []string        `json:"addresses,omitempty"`
	// Err is empty if the operation succeeded.
	Err string `json:"err,omitempty"`
	// Times is how often the operation failed in the same way since the line before
	// this one; 0 stands for once.
	Times int `json:"times,omitempty"`
}

// Failed says whether the operation failed or was cut off.
func (o *Operation) Failed() bool { return o.Err != "" || o.State == CutOff }

// Step is a step of a sandbox's lifecycle. Took is in seconds.
type Step struct {
	Step  string    `json:"step"`
	Start time.Time `json:"start"`
	Took  float64   `json:"took"`
}

// Run is one run of a plugin.
type Run struct {
	Type    string `json:"type"`
	Command string `json:"command"`
	// Builtin: inside crinetd. Otherwise the binary at Path was executed.
	Builtin bool   `json:"builtin"`
	Path    string `json:"path,omitempty"`
	// Config is the standard input, Env the CNI variables.
	Config json.RawMessage `json:"config,omitempty"`
	Env    []string        `json:"env,omitempty"`
	// Stdout is the result or the CNI error. It is a string if it is no JSON, or was
	// cut; so is Config.
	Stdout json.RawMessage `json:"stdout,omitempty"`
	Stderr string          `json:"stderr,omitempty"`
	Err    string          `json:"err,omitempty"`
	Start  time.Time       `json:"start"`
	// Took is in seconds, for one that is running until now.
	Took    float64 `json:"took"`
	Running bool    `json:"running,omitempty"`
}

// Matches says whether an operation is of the pod that a text names: by its name,
// namespace/name, uid, or the first four or more characters of its sandbox's id. An
// empty text names every pod.
func (o *Operation) Matches(pod string) bool {
	return pod == "" || Names(pod, o.Pod, o.Sandbox)
}

// Names says whether a text names a pod or its sandbox, see [Operation.Matches].
func Names(text string, pod journal.Pod, sandbox string) bool {
	if text == "" {
		return false
	}
	return text == pod.Name || text == pod.String() || text == pod.UID ||
		len(text) >= minPrefix && strings.HasPrefix(sandbox, text)
}

// minPrefix is how many characters of a sandbox's id are enough.
const minPrefix = 4

// stepsOf converts the steps of a flight. A step that is under way has no end.
func stepsOf(steps []journal.StepTime) []Step {
	var all []Step
	for _, s := range steps {
		all = append(all, Step{Step: s.Step, Start: s.Start.UTC(), Took: max(s.Duration, 0).Seconds()})
	}
	return all
}
