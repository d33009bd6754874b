package recorder

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
)

const (
	// again is how long the same failure of the same sandbox is counted, not written.
	again = time.Minute
	// maxFailures bounds the sandboxes whose last failure is remembered.
	maxFailures = 1024
)

// Config is the configuration of a Recorder.
type Config struct {
	// Dir is the state dir. It must exist.
	Dir string
	// Log is told when operations cannot be kept, and when they can be again.
	Log *slog.Logger
	// Selected returns the file of a network that is selected now, and why it is; nil
	// says neither. It answers from memory.
	Selected func(network string) (file, why string)
}

// Recorder keeps operations. It is safe for concurrent use. Its methods that keep
// something never fail: what cannot be written is counted.
type Recorder struct {
	config Config
	run    string // begins the ids of this run
	count  atomic.Uint64
	lost   atomic.Uint64

	mu       sync.Mutex // guards what follows, and orders writes
	lines    lines
	trouble  error               // why the last line could not be written
	running  map[string]*pending // id -> operation under way
	failures map[failure]*repeated
}

// failure names a sandbox, or a pod without one, and what fails for it.
type failure struct {
	verb, sandbox string
	pod           journal.Pod
}

// repeated is a failure that was written.
type repeated struct {
	err     string
	written time.Time
	unsaid  int // how often it happened since
}

// New returns a Recorder that writes to the files in c.Dir.
func New(c Config) *Recorder {
	r := &Recorder{
		config: c, run: rand.Text()[:10], lines: lines{dir: c.Dir, keep: Keep},
		running: make(map[string]*pending), failures: make(map[failure]*repeated),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(r.lines.ensure())
	return r
}

// Close closes the file. Nothing must be kept any more.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.close()
}

// Lost is how many lines could not be written. Trouble is why the last one could not;
// nil if it could.
func (r *Recorder) Lost() uint64 { return r.lost.Load() }

// Trouble is why the last line could not be written; nil if it could.
func (r *Recorder) Trouble() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trouble
}

// Find returns operations, the newest first, with those that are under way.
func (r *Recorder) Find(q Query) ([]Operation, error) {
	return read(r.config.Dir, q, func(o *Operation) bool {
		r.mu.Lock()
		p := r.running[o.ID]
		r.mu.Unlock()
		if p != nil {
			*o = p.soFar()
		}
		// One of this run that is not there has ended since the file was read.
		return p != nil || strings.HasPrefix(o.ID, r.run+"-")
	})
}

// pending is an operation under way.
type pending struct {
	recorder *Recorder
	mu       sync.Mutex // guards what follows
	op       Operation
	now      []*Run // the runs under way
	ended    bool
}

// soFar is the operation as it is now, with the runs under way.
func (p *pending) soFar() Operation {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.op
	o.Took, o.Runs = time.Since(o.Start).Seconds(), slices.Clone(o.Runs)
	for i := range o.Runs {
		o.Runs[i].Env = slices.Clone(o.Runs[i].Env) // the end may cut it
	}
	for _, run := range p.now {
		run := *run
		run.Took = time.Since(run.Start).Seconds()
		o.Runs = append(o.Runs, run)
	}
	return o
}

// ofOperation is the key of the operation in a context.
type ofOperation struct{}

// Begin begins an operation on the attachment that about names as far as it is known.
// Runs of plugins under the returned context are part of it, see [Recorder.Observe].
// end must be called with the attachment as it is then; it may be nil. Under a context
// that has an operation, Begin begins none: what is done is part of the other.
func (r *Recorder) Begin(ctx context.Context, verb, by string, about *journal.Record) (_ context.Context, end func(*journal.Record, []journal.StepTime, error)) {
	if ctx.Value(ofOperation{}) != nil {
		return ctx, func(*journal.Record, []journal.StepTime, error) {}
	}
	p := &pending{recorder: r, op: Operation{
		ID: fmt.Sprintf("%s-%d", r.run, r.count.Add(1)), State: UnderWay, Verb: verb, By: by, Start: time.Now().UTC(),
	}}
	p.op.describe(about)
	r.begin(p)
	return context.WithValue(ctx, ofOperation{}, p), p.end
}

// Failed keeps an operation that failed at once: a pod that was refused, or whose
// sandbox the runtime did not make.
func (r *Recorder) Failed(verb, by string, about *journal.Record, err error) {
	p := &pending{recorder: r, op: Operation{
		ID: fmt.Sprintf("%s-%d", r.run, r.count.Add(1)), Verb: verb, By: by, Start: time.Now().UTC(),
	}}
	p.end(about, nil, err)
}

// describe takes over what is known of an attachment.
func (o *Operation) describe(r *journal.Record) {
	if r == nil {
		return
	}
	a := &r.Attachment
	o.Pod, o.Sandbox, o.IfName, o.NetNS, o.Network = r.Pod, a.ContainerID, a.IfName, a.NetNS, a.Network
	o.HostPorts = nil
	for _, mapping := range r.HostPorts {
		o.HostPorts = append(o.HostPorts, mapping.String())
	}
}

// begin writes the line that says that an operation has begun. One that failed a
// moment ago, and is tried again, needs none.
func (r *Recorder) begin(p *pending) {
	line := p.op.encode() // nobody else has it yet
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[p.op.ID] = p
	if r.failures[p.op.failure()] == nil {
		r.write(line, false)
	}
}

func (o *Operation) failure() failure { return failure{o.Verb, o.Sandbox, o.Pod} }

// end writes the operation.
func (p *pending) end(about *journal.Record, steps []journal.StepTime, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	o := &p.op
	o.describe(about)
	o.State, o.Took, o.Steps = Done, time.Since(o.Start).Seconds(), stepsOf(steps)
	if err != nil {
		o.Err = RedactText(err.Error())
	}
	if about != nil && o.Verb == Add {
		o.Result = Redact(about.Attachment.Result)
		addresses, _ := cni.Addresses(about.Attachment.Result) // none before ADD's end
		for _, address := range addresses {
			o.Addresses = append(o.Addresses, address.String())
		}
	}
	if selected := p.recorder.config.Selected; selected != nil && (o.Verb == Add || o.Verb == RunPodSandbox) && o.Network != "" {
		o.File, o.Selected = selected(o.Network)
	}
	p.recorder.end(o)
}

// end writes the line of an operation that has ended, or counts it.
func (r *Recorder) end(o *Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.running, o.ID)
	key := o.failure()
	last := r.failures[key]
	switch {
	case o.Err == "":
		delete(r.failures, key)
	case last != nil && last.err == o.Err && o.Start.Sub(last.written) < again:
		last.unsaid++
		return
	default:
		if last != nil && last.err == o.Err {
			o.Times = last.unsaid + 1
		}
		if len(r.failures) >= maxFailures {
			clear(r.failures)
		}
		r.failures[key] = &repeated{err: o.Err, written: o.Start}
	}
	r.write(o.encode(), true)
}

// write writes a line. The caller holds the lock.
func (r *Recorder) write(line []byte, done bool) {
	err := r.lines.add(line, done)
	if err != nil {
		r.lost.Add(1)
	}
	r.note(err)
}

// note keeps how the last write went, and logs it if it went otherwise than the one
// before. The caller holds the lock.
func (r *Recorder) note(err error) {
	switch {
	case err != nil && r.trouble == nil:
		r.config.Log.Warn("what is done for pods is not recorded for crinetctl why; the pods do not depend on that",
			"dir", r.config.Dir, "err", err)
	case err == nil && r.trouble != nil:
		r.config.Log.Info("what is done for pods is recorded again", "dir", r.config.Dir, "lost", r.lost.Load())
	}
	r.trouble = err
}

// Observe adds a run of a plugin to the operation of its context (cni.Observe).
func (r *Recorder) Observe(ctx context.Context, run cni.Run) (context.Context, []string, func(cni.Run)) {
	p, _ := ctx.Value(ofOperation{}).(*pending)
	if p == nil {
		return ctx, nil, func(cni.Run) {}
	}
	begun := &Run{Type: run.Type, Command: run.Command, Builtin: run.Builtin, Path: run.Path, Start: run.Start.UTC(), Running: true}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.now) < maxRuns {
		p.now = append(p.now, begun)
	}
	return ctx, nil, func(run cni.Run) { p.ran(begun, run) }
}

// ran adds a run that has ended. It keeps nothing of the run's memory.
func (p *pending) ran(begun *Run, run cni.Run) {
	kept := Run{
		Type: run.Type, Command: run.Command, Builtin: run.Builtin, Path: run.Path, Env: RedactEnv(run.Env),
		Config: keepJSON(run.Stdin), Stdout: keepJSON(run.Stdout), Stderr: RedactText(string(bound(run.Stderr))),
		Start: run.Start.UTC(), Took: run.Duration.Seconds(),
	}
	if run.Err != nil {
		kept.Err = RedactText(run.Err.Error())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = slices.DeleteFunc(p.now, func(r *Run) bool { return r == begun })
	switch {
	case p.ended:
	case len(p.op.Runs) >= maxRuns:
		p.op.MoreRuns++
	default:
		p.op.Runs = append(p.op.Runs, kept)
	}
}

// mostRead bounds what is looked at of what a plugin got or said, in bytes.
const mostRead = 256 << 10

func bound(data []byte) []byte { return data[:min(len(data), mostRead)] }

// keepJSON redacts and cuts what a plugin got or said.
func keepJSON(data []byte) json.RawMessage {
	return cutJSON(Redact(bound(data)), allLimits()[0].json)
}
