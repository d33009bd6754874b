// Command testplugin is a CNI plugin that fails on request and records its calls.
// Package script says how a test tells it what to do.
//
// As the first of a chain its ADD gives the pod the addresses that its
// configuration names in "addresses", without making any device; behind another
// plugin it passes that plugin's result on. Its other verbs do nothing.
//
// Under another name it stands in for a plugin that cannot be installed. A file in
// script.StandInDir then says what it does, instead of its configuration.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/testplugin/script"
)

const versions = `{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`

// floodBytes is what the action flood prints.
const floodBytes = 100 << 20

// config is the part of the plugin's configuration that it reads.
type config struct {
	CNIVersion string          `json:"cniVersion"`
	Dir        string          `json:"dir"`
	Addresses  []string        `json:"addresses"`
	PrevResult json.RawMessage `json:"prevResult"`
}

// failure is the CNI specification's error result.
type failure struct {
	CNIVersion string `json:"cniVersion"`
	Code       uint   `json:"code"`
	Msg        string `json:"msg"`
}

func (f *failure) Error() string { return f.Msg }

var errSilent = errors.New("fail without a word")

func main() {
	err := run(os.Getenv, os.Stdin, os.Stdout)
	if err == nil {
		return
	}
	var f *failure
	switch {
	case errors.Is(err, errSilent):
	case errors.As(err, &f):
		_ = json.NewEncoder(os.Stdout).Encode(f) // the exit code says it as well
	default:
		fmt.Fprintln(os.Stderr, "testplugin:", err)
	}
	os.Exit(1)
}

func run(getenv func(string) string, stdin io.Reader, stdout io.Writer) error {
	call := script.Call{
		Verb:        getenv("CNI_COMMAND"),
		Time:        time.Now(),
		ContainerID: getenv("CNI_CONTAINERID"),
		NetNS:       getenv("CNI_NETNS"),
		IfName:      getenv("CNI_IFNAME"),
		Args:        getenv("CNI_ARGS"),
		Path:        getenv("CNI_PATH"),
		TraceParent: getenv("TRACEPARENT"),
	}
	input, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	var conf config
	if err := json.Unmarshal(input, &conf); err != nil {
		return fmt.Errorf("decode the configuration: %w", err)
	}
	standIn, err := findStandIn(os.Args[0])
	if err != nil {
		return err
	}
	if conf.Dir == "" {
		conf.Dir = standIn.Dir
	}
	if conf.Dir == "" || call.Verb == "VERSION" {
		// VERSION is asked without the plugin's own keys.
		return perform(call.Verb, conf, stdout)
	}
	call.Config = input
	for pair := range strings.SplitSeq(call.Args, ";") {
		if name, ok := strings.CutPrefix(pair, "K8S_POD_NAME="); ok {
			call.Pod = name
		}
	}
	if call.NetNSExists, call.Processes, err = lookInto(call.NetNS); err != nil {
		return err
	}
	rule, err := script.Record(conf.Dir, call)
	if err != nil {
		return fmt.Errorf("record the call: %w", err)
	}
	switch {
	case rule.Do == script.Succeed && standIn.Multus != nil:
		return multus(standIn.Multus, call, stdout)
	case rule.Do == script.Succeed && len(standIn.Delegate) > 0:
		return delegate(standIn, getenv, input, stdout)
	}
	return act(rule, call.Verb, conf, stdout)
}

func act(rule script.Rule, verb string, conf config, stdout io.Writer) error {
	switch rule.Do {
	case script.Succeed:
		return perform(verb, conf, stdout)
	case script.Fail:
		if rule.Code == 0 {
			rule.Code = 100
		}
		fmt.Fprint(os.Stderr, rule.Stderr)
		return &failure{CNIVersion: conf.CNIVersion, Code: rule.Code, Msg: rule.Text}
	case script.Silent:
		return errSilent
	case script.Garbage:
		_, err := io.WriteString(stdout, "Segmentation fault {")
		return err
	case script.Flood:
		return flood(stdout)
	case script.Hang:
		fmt.Fprintln(os.Stderr, rule.Text)
		return hang()
	case script.Crash:
		return die()
	case script.Late:
		time.Sleep(rule.Delay)
		return perform(verb, conf, stdout)
	case script.Die:
		return errors.Join(perform(verb, conf, stdout), die())
	}
	return fmt.Errorf("unknown action %q", rule.Do)
}

// perform does what the verb asks for.
func perform(verb string, conf config, stdout io.Writer) error {
	switch verb {
	case "VERSION":
		_, err := io.WriteString(stdout, versions)
		return err
	case "ADD":
		if len(conf.PrevResult) != 0 {
			_, err := stdout.Write(conf.PrevResult)
			return err
		}
		type ip struct {
			Version string `json:"version,omitempty"`
			Address string `json:"address"`
		}
		ips := []ip{}
		for _, address := range conf.Addresses {
			next := ip{Address: address}
			// Results before 1.0.0 name the family.
			if strings.HasPrefix(conf.CNIVersion, "0.") {
				next.Version = "4"
				if strings.Contains(address, ":") {
					next.Version = "6"
				}
			}
			ips = append(ips, next)
		}
		return json.NewEncoder(stdout).Encode(map[string]any{"cniVersion": conf.CNIVersion, "ips": ips})
	}
	return nil
}

func flood(stdout io.Writer) error {
	chunk := []byte(strings.Repeat("all work and no play makes a dull plugin\n", 1600))
	for written := 0; written < floodBytes; written += len(chunk) {
		if _, err := stdout.Write(chunk); err != nil {
			return err
		}
	}
	return nil
}

// hang leaves a child behind that holds the output open, as a plugin does that
// hangs in another program.
func hang() error {
	child := exec.Command("sleep", "3600")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	return child.Run()
}

func die() error {
	if err := unix.Kill(unix.Getpid(), unix.SIGKILL); err != nil {
		return err
	}
	select {}
}

// lookInto tells whether path is a network namespace, and which processes are
// in it.
func lookInto(path string) (exists bool, processes []script.Process, err error) {
	var fs unix.Statfs_t
	var want, got unix.Stat_t
	if path == "" || unix.Statfs(path, &fs) != nil || unix.Stat(path, &want) != nil || fs.Type != unix.NSFS_MAGIC {
		return false, nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true, nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		// What can't be looked at has ended meanwhile.
		if err != nil || unix.Stat("/proc/"+entry.Name()+"/ns/net", &got) != nil || got.Ino != want.Ino || got.Dev != want.Dev {
			continue
		}
		program, err := os.Readlink("/proc/" + entry.Name() + "/exe")
		if err != nil {
			continue
		}
		processes = append(processes, script.Process{PID: pid, Program: program})
	}
	return true, processes, nil
}
