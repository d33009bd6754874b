package history

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/testplugin/script"
	"github.com/crinet-project/crinet/runtime/recorder"
)

// collectEvery is how often new lines are looked for.
const collectEvery = 100 * time.Millisecond

// Collector records what crinetd and the test plugin write into files.
type Collector struct {
	recorder *Recorder
	tails    []*tail
	stop     chan struct{}
	done     chan error
}

// Collect records crinetd's operations, from its state dir, and the calls of the test
// plugin, from its directory, until Close.
func (r *Recorder) Collect(stateDir, scriptDir string) *Collector {
	c := &Collector{recorder: r, stop: make(chan struct{}), done: make(chan error, 1)}
	c.tails = []*tail{
		{path: filepath.Join(stateDir, recorder.CurrentFile), line: c.operation},
		{path: filepath.Join(scriptDir, script.CallsFile), line: c.call},
	}
	go c.run()
	return c
}

// Close records what is there now, and ends.
func (c *Collector) Close() error {
	close(c.stop)
	return <-c.done
}

func (c *Collector) run() {
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	for last := false; ; {
		for _, t := range c.tails {
			if err := t.follow(); err != nil {
				c.done <- fmt.Errorf("collect %s: %w", t.path, err)
				return
			}
		}
		if last {
			var errs []error
			for _, t := range c.tails {
				errs = append(errs, t.close())
			}
			c.done <- errors.Join(errs...)
			return
		}
		select {
		case <-ticker.C:
		case <-c.stop:
			last = true
		}
	}
}

// operation records a line of crinetd's recorder.
func (c *Collector) operation(line []byte) error {
	var o recorder.Operation
	if err := json.Unmarshal(line, &o); err != nil {
		return err
	}
	e := Operation{
		ID: o.ID, Verb: o.Verb, By: o.By, Done: o.State == recorder.Done, Pod: o.Pod.String(), Sandbox: o.Sandbox,
		IfName: o.IfName, NetNS: o.NetNS, Begin: o.Start, Result: o.Result, Addresses: o.Addresses, Err: o.Err,
	}
	if e.Done {
		e.End = o.Start.Add(seconds(o.Took))
	}
	for _, r := range o.Runs {
		e.Runs = append(e.Runs, Run{Type: r.Type, Command: r.Command, Begin: r.Start, End: r.Start.Add(seconds(r.Took)), Config: r.Config, Err: r.Err})
	}
	c.recorder.Add(Event{Kind: OperationEnd, Operation: &e})
	return nil
}

// call records a line of the test plugin.
func (c *Collector) call(line []byte) error {
	var call script.Call
	if err := json.Unmarshal(line, &call); err != nil {
		return err
	}
	c.recorder.Add(Event{Time: call.Time, Kind: PluginExec, Exec: &Exec{
		Verb: call.Verb, Sandbox: call.ContainerID, IfName: call.IfName, NetNS: call.NetNS, Args: call.Args,
		Pod: call.Pod, Config: call.Config,
	}})
	return nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// tail follows a file of lines that grows, and that another one may replace.
type tail struct {
	path string
	line func([]byte) error
	file *os.File
	rest []byte // of a line whose end has not come
}

// follow reads what has come since.
func (t *tail) follow() error {
	for {
		if t.file == nil {
			file, err := os.Open(t.path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			t.file = file
		}
		// In this order: what is written into the old file is written before it is replaced.
		replaced := t.replaced()
		if err := t.read(); err != nil || !replaced {
			return err
		}
		if err := t.close(); err != nil {
			return err
		}
	}
}

func (t *tail) read() error {
	text, err := io.ReadAll(t.file)
	if err != nil {
		return err
	}
	t.rest = append(t.rest, text...)
	for {
		line, rest, found := bytes.Cut(t.rest, []byte("\n"))
		if !found {
			return nil
		}
		t.rest = rest
		if len(line) == 0 {
			continue // the end of a line that was cut off
		}
		if err := t.line(line); err != nil && json.Valid(line) {
			return err
		}
	}
}

func (t *tail) replaced() bool {
	var now, then unix.Stat_t
	return unix.Stat(t.path, &now) == nil && unix.Fstat(int(t.file.Fd()), &then) == nil && (now.Ino != then.Ino || now.Dev != then.Dev)
}

func (t *tail) close() error {
	if t.file == nil {
		return nil
	}
	file := t.file
	t.file, t.rest = nil, nil
	return file.Close()
}
