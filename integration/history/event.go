// Package history records what happens on a node while a test runs, and checks the
// whole of it against a model of what crinet promises, not only its end.
//
// # The file
//
// A history is a file of JSON lines, each an [Event]: calls of CRI as the test's
// client made them, crinetd's operations and their runs of plugins, each exec of the
// test plugin as the plugin itself wrote it down, transactions of the nftables table
// inet crinet, changes of links, kills and starts of daemons, and at the end what is
// left on the node. A [Recorder] writes it while the test runs; [Read] reads it again.
//
// # Time
//
// Calls, operations and execs carry the time at which they began and ended, by the
// one clock of the machine. Transactions and links carry the time at which the
// kernel's message was read, which is later than what it tells of; among themselves
// they are in order as far as the model needs it: what the table lost before a link
// went down stands before that link's event, see [Watcher].
//
// # The model
//
// [Check] is a function of the events alone. A call holds from its begin to its end,
// and what a kill cut off may have been done or not: only what is certain is held
// against crinet. Each [Violation] names the rule and the events that prove it.
package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Kind is what an event tells of. It says which of the event's fields is set.
type Kind string

// The kinds of events.
const (
	CallBegan    Kind = "call"      // Call: a CRI call begins
	CallEnded    Kind = "answer"    // Call: its answer
	OperationEnd Kind = "operation" // Operation of crinetd, begun or ended
	PluginExec   Kind = "exec"      // Exec of the test plugin begins
	TableChange  Kind = "table"     // Table: one transaction of the table inet crinet
	LinkChange   Kind = "link"      // Link in the node's namespace
	DaemonKilled Kind = "kill"      // Daemon was killed
	DaemonStart  Kind = "start"     // Daemon serves again
	Lost         Kind = "lost"      // messages of the kernel were lost
	Sampled      Kind = "sample"    // Sample of crinetd and the kernel
	End          Kind = "end"       // Left: all pods are gone, and this is left
)

// Event is one line of a history.
type Event struct {
	Time      time.Time  `json:"time"`
	Kind      Kind       `json:"kind"`
	Call      *Call      `json:"call,omitempty"`
	Operation *Operation `json:"operation,omitempty"`
	Exec      *Exec      `json:"exec,omitempty"`
	Table     *Table     `json:"table,omitempty"`
	Link      *Link      `json:"link,omitempty"`
	Daemon    string     `json:"daemon,omitempty"`
	Left      []string   `json:"left,omitempty"`

	// Sample is what crinetd and the kernel used at the time, by the names of
	// [SampleNames].
	Sample map[string]float64 `json:"sample,omitempty"`
}

// Call is the begin or the end of a CRI call. Both have the same number.
type Call struct {
	Number int    `json:"number"`
	Method string `json:"method"`
	// Pod is namespace/name, HostPorts are those that a RunPodSandbox asks for, such
	// as tcp/8080. First says that its ADD comes before others that wait.
	Pod       string   `json:"pod,omitempty"`
	HostPorts []string `json:"hostPorts,omitempty"`
	First     bool     `json:"first,omitempty"`
	// Sandbox is the id, which a RunPodSandbox has at its end only.
	Sandbox string `json:"sandbox,omitempty"`
	// Err is the error of an answer; empty if the call succeeded.
	Err string `json:"err,omitempty"`
}

// Operation is what crinetd's recorder tells of an operation. One that has no end is
// told once, when it began.
type Operation struct {
	ID      string          `json:"id"`
	Verb    string          `json:"verb"`
	By      string          `json:"by"`
	Done    bool            `json:"done"`
	Pod     string          `json:"pod,omitempty"`
	Sandbox string          `json:"sandbox,omitempty"`
	IfName  string          `json:"ifName,omitempty"`
	NetNS   string          `json:"netns,omitempty"`
	Begin   time.Time       `json:"begin"`
	End     time.Time       `json:"end,omitzero"`
	Result  json.RawMessage `json:"result,omitempty"`
	Err     string          `json:"err,omitempty"`
	// Addresses are those of an ADD's result, with prefix lengths.
	Addresses []string `json:"addresses,omitempty"`
	Runs      []Run    `json:"runs,omitempty"`
}

// Run is one run of a plugin within an operation, as crinetd saw it.
type Run struct {
	Type    string          `json:"type"`
	Command string          `json:"command"`
	Begin   time.Time       `json:"begin"`
	End     time.Time       `json:"end"`
	Config  json.RawMessage `json:"config,omitempty"`
	Err     string          `json:"err,omitempty"`
}

// Exec is one exec of the test plugin, as the plugin saw it before it did anything.
type Exec struct {
	Verb    string          `json:"verb"`
	Sandbox string          `json:"sandbox"`
	IfName  string          `json:"ifName"`
	NetNS   string          `json:"netns,omitempty"`
	Args    string          `json:"args,omitempty"`
	Pod     string          `json:"pod,omitempty"`
	Config  json.RawMessage `json:"config,omitempty"`
}

// Table is one transaction. Reset says that the table was deleted in it, before the
// elements of Added came.
type Table struct {
	Reset   bool      `json:"reset,omitempty"`
	Removed []Element `json:"removed,omitempty"`
	Added   []Element `json:"added,omitempty"`
}

// Element is an element of a set or map. Where the set maps hostPorts, Key is such as
// tcp/8080, and Address and Port are where it leads; elsewhere Key is in hex.
type Element struct {
	Set     string `json:"set"`
	Key     string `json:"key"`
	Address string `json:"address,omitempty"`
	Port    uint16 `json:"port,omitempty"`
	// Comment is the pod's namespace/name.
	Comment string `json:"comment,omitempty"`
}

// LinkState is the state of a link.
type LinkState string

// The states of links.
const (
	LinkUp   LinkState = "up"
	LinkDown LinkState = "down" // or doomed: it will be removed
	LinkGone LinkState = "gone"
)

// Link is a link's state after a change.
type Link struct {
	Index int       `json:"index"`
	Name  string    `json:"name"`
	State LinkState `json:"state"`
}

// Read reads a history. A last line that is cut off is left out.
func Read(r io.Reader) ([]Event, error) {
	var events []Event
	decoder := json.NewDecoder(bufio.NewReaderSize(r, 1<<20))
	for {
		var e Event
		err := decoder.Decode(&e)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return events, nil
		case err != nil:
			return events, fmt.Errorf("read a history, line %d: %w", len(events)+1, err)
		}
		events = append(events, e)
	}
}

// ReadFile reads the history in a file.
func ReadFile(path string) ([]Event, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	events, err := Read(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return events, nil
}
