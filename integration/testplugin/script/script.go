// Package script is how a test and the test plugin communicate. The test writes a
// script of faults, the plugin a record of each call. Both are in one directory,
// which the plugin's configuration names as "dir":
//
//	{"type": "testplugin", "dir": "/run/testplugin"}
//
// The script is read anew at each call, so that a test can change it while pods
// are up, and the journalled configuration stays the same.
package script

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Action is what the plugin does with a call.
type Action string

// The actions. A plugin that dies of a signal does so by SIGKILL.
const (
	Succeed Action = ""        // do the verb's work
	Fail    Action = "fail"    // print a CNI error with the rule's code and text
	Silent  Action = "silent"  // exit 1 without a word
	Garbage Action = "garbage" // print what is no JSON, exit 0
	Flood   Action = "flood"   // print 100 MB, exit 0
	Hang    Action = "hang"    // never return; a child holds the output open as well
	Crash   Action = "crash"   // die of a signal before anything is done
	Late    Action = "late"    // succeed after the rule's delay
	Admit   Action = "admit"   // succeed, but not within the rule's delay of the last success: fail
	Die     Action = "die"     // do the work, print the result, then die of a signal
)

// Rule says what to do with some calls. The first rule that matches decides.
type Rule struct {
	Verb string `json:"verb"`          // ADD, DEL, CHECK, STATUS, GC, VERSION; empty: each
	Call int    `json:"call"`          // which call of that verb, from 1; 0: each
	Pod  string `json:"pod,omitempty"` // the pod's name; empty: each

	Do    Action        `json:"do"`
	Delay time.Duration `json:"delay,omitempty"` // for late and admit
	Code  uint          `json:"code,omitempty"`  // for fail; 0 stands for 100
	Text  string        `json:"text,omitempty"`  // for fail; hang prints it on standard error
	// Stderr is printed on standard error by fail.
	Stderr string `json:"stderr,omitempty"`
}

// Call is the record of one call, written before the plugin does anything.
type Call struct {
	Verb        string          `json:"verb"`
	Number      int             `json:"number"` // among the calls of that verb, from 1
	Time        time.Time       `json:"time"`
	Do          Action          `json:"do"`
	ContainerID string          `json:"containerID"`
	NetNS       string          `json:"netns"`
	IfName      string          `json:"ifName"`
	Args        string          `json:"args"`
	Path        string          `json:"path"`
	Pod         string          `json:"pod"`
	TraceParent string          `json:"traceParent,omitempty"` // environment variable TRACEPARENT
	NetNSExists bool            `json:"netnsExists"`           // the path is a network namespace
	Processes   []Process       `json:"processes"`             // those in the network namespace
	Config      json.RawMessage `json:"config"`                // standard input
}

// Process is a process that the plugin saw.
type Process struct {
	PID     int    `json:"pid"`
	Program string `json:"program"`
}

// StandInDir is where the plugin looks, in the file NAME.json, what it does when
// it was installed under the name NAME.
const StandInDir = "/run/standin"

// StandIn is what the plugin does in the place of another one, whose
// configuration says nothing of it.
type StandIn struct {
	// Dir is where script and record are.
	Dir string `json:"dir"`
	// Delegate is the configuration of a plugin that is called to do the work.
	Delegate json.RawMessage `json:"delegate,omitempty"`
	// Multus has the plugin do what Multus does; nil does not.
	Multus *Multus `json:"multus,omitempty"`
}

// Multus is how the plugin stands in for Multus, which runs a master plugin for
// the pod's first interface.
type Multus struct {
	// ConfDir is where the master's configuration is looked for: the first file
	// by name that is not Multus' own.
	ConfDir string `json:"confDir"`
	// Thick has the master run without the caller's environment, as by the daemon
	// of a thick Multus.
	Thick bool `json:"thick,omitempty"`
}

// CallsFile is the record: a line of JSON for each [Call].
const CallsFile = "calls.jsonl"

// The other files of the directory.
const (
	rulesFile  = "rules.json"
	countsFile = "counts.json"
	lockFile   = "lock"
)

// SetRules replaces the script in dir, in one step.
func SetRules(dir string, rules ...Rule) error {
	text, err := json.MarshalIndent(rules, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("set the test plugin's rules: %w", err)
	}
	temp := filepath.Join(dir, rulesFile+".new")
	if err := os.WriteFile(temp, text, 0o644); err != nil {
		return fmt.Errorf("set the test plugin's rules: %w", err)
	}
	return os.Rename(temp, filepath.Join(dir, rulesFile))
}

// Calls returns the calls recorded in dir so far, the earliest first.
func Calls(dir string) ([]Call, error) {
	file, err := os.Open(filepath.Join(dir, CallsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the test plugin's calls: %w", err)
	}
	defer file.Close()
	var calls []Call
	decoder := json.NewDecoder(bufio.NewReader(file))
	for decoder.More() {
		var call Call
		if err := decoder.Decode(&call); err != nil {
			return calls, fmt.Errorf("read the test plugin's calls: %w", err)
		}
		calls = append(calls, call)
	}
	return calls, nil
}

// Record numbers the call, adds it to the record in dir and returns the rule
// that applies to it.
func Record(dir string, call Call) (rule Rule, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Rule{}, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return Rule{}, err
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Rule{}, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if call.Number, err = number(dir, call.Verb); err != nil {
		return Rule{}, err
	}
	rules, err := readRules(dir)
	if err != nil {
		return Rule{}, err
	}
	for _, r := range rules {
		if (r.Verb == "" || r.Verb == call.Verb) && (r.Call == 0 || r.Call == call.Number) && (r.Pod == "" || r.Pod == call.Pod) {
			rule = r
			break
		}
	}
	if rule.Do == Admit {
		earlier, err := Calls(dir)
		if err != nil {
			return Rule{}, err
		}
		rule.Do = Succeed
		for _, c := range slices.Backward(earlier) {
			if c.Verb == call.Verb && c.Do == Succeed && call.Time.Sub(c.Time) < rule.Delay {
				rule.Do = Fail
				break
			}
		}
	}
	call.Do = rule.Do
	return rule, appendCall(dir, call)
}

// number counts the calls of a verb. The counts have a file of their own, so that a
// call takes no longer the more there were. The caller holds the lock.
func number(dir, verb string) (int, error) {
	path := filepath.Join(dir, countsFile)
	counts := make(map[string]int)
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &counts)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("count the calls: %w", err)
	}
	counts[verb]++
	if text, err = json.Marshal(counts); err != nil {
		return 0, err
	}
	// In one step: the plugin may be killed here.
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return 0, err
	}
	return counts[verb], os.Rename(path+".new", path)
}

func readRules(dir string) ([]Rule, error) {
	text, err := os.ReadFile(filepath.Join(dir, rulesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rules []Rule
	if err := json.Unmarshal(text, &rules); err != nil {
		return nil, fmt.Errorf("decode %s: %w", rulesFile, err)
	}
	return rules, nil
}

func appendCall(dir string, call Call) error {
	text, err := json.Marshal(call)
	if err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, CallsFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := file.Write(append(text, '\n')); err != nil {
		return errors.Join(err, file.Close())
	}
	return file.Close()
}
