package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Recorder writes a history. It is safe for concurrent use.
type Recorder struct {
	mu    sync.Mutex // guards what follows
	file  *os.File
	out   *bufio.Writer
	calls int
	err   error // the first that a write had
}

// NewRecorder returns a Recorder that writes to a new file.
func NewRecorder(path string) (*Recorder, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("make a history: %w", err)
	}
	return &Recorder{file: file, out: bufio.NewWriterSize(file, 1<<16)}, nil
}

// Add appends an event. One without a time gets that of now. What cannot be written
// is the error of Close.
func (r *Recorder) Add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.add(e)
}

func (r *Recorder) add(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	line, err := json.Marshal(e)
	if err == nil {
		_, err = r.out.Write(append(line, '\n'))
	}
	if r.err == nil {
		r.err = err
	}
}

// Begin appends the begin of a CRI call. end appends its answer.
func (r *Recorder) Begin(call Call) (end func(sandbox string, err error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	call.Number = r.calls
	r.add(Event{Kind: CallBegan, Call: &call})
	return func(sandbox string, err error) {
		answer := call
		if sandbox != "" {
			answer.Sandbox = sandbox
		}
		if err != nil {
			answer.Err = err.Error()
		}
		r.Add(Event{Kind: CallEnded, Call: &answer})
	}
}

// Killed appends that a daemon was killed.
func (r *Recorder) Killed(daemon string) { r.Add(Event{Kind: DaemonKilled, Daemon: daemon}) }

// Started appends that a daemon serves again.
func (r *Recorder) Started(daemon string) { r.Add(Event{Kind: DaemonStart, Daemon: daemon}) }

// Close writes what is left to be written. Nothing may be added any more.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := errors.Join(r.err, r.out.Flush(), r.file.Close()); err != nil {
		return fmt.Errorf("write the history %s: %w", r.file.Name(), err)
	}
	return nil
}
