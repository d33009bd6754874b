// Package drift notices when the network of an attached pod is not any more as ADD left
// it, tells so, and mends it as far as it is allowed to. Nobody else looks: no runtime
// calls CHECK, and a pod whose eth0 is gone counts as healthy.
//
// Each pod is compared with the kernel in intervals (package inspect), one after the
// other and spread over the interval, and at once when netlink says that something of it
// changed on the node. What is found counts when a second look, a moment later and with
// the sandbox's lock held, finds the same: an attachment in the making or in removal is
// never held. The plugins' CHECK runs seldom. It counts only where it has passed before:
// a CHECK that has never passed says nothing about the pod.
package drift

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Mode is what is done about drift.
type Mode string

// The modes.
const (
	// Report tells of it.
	Report Mode = "report"
	// Repair sets again what crinetd itself or a built-in plugin had set.
	Repair Mode = "repair"
	// Recreate repairs, and has the kubelet make the sandboxes anew that cannot be
	// repaired.
	Recreate Mode = "recreate"
)

// PartCheck is the part of a finding that is a plugin's, made by CHECK.
const PartCheck = "CHECK"

// Engine has the attachments (package engine).
type Engine interface {
	// Records returns the journal's records.
	Records() ([]*journal.Record, error)
	// Stands says whether a record's attachment should stand.
	Stands(*journal.Record) bool
	// Hold calls do with an attachment that stands, while nothing can change it, and
	// says whether it did.
	Hold(ctx context.Context, key journal.Key, do func(*journal.Record)) (held bool, err error)
	// CheckHeld runs CHECK as Hold does; said is its answer.
	CheckHeld(ctx context.Context, key journal.Key) (held bool, said error, err error)
}

// Meta keeps values over restarts (package journal).
type Meta interface {
	PutMeta(name string, value []byte) error
	Meta(name string) ([]byte, error)
}

// Config names the parts of a [Watcher]. All but CheckInterval are required.
type Config struct {
	Log     *slog.Logger
	Engine  Engine
	Meta    Meta
	Metrics *Metrics
	// Subjects returns what says what the network of a record should be. What is read
	// for one record may serve the next: it is asked for anew for each batch of looks.
	Subjects func() func(*journal.Record) inspect.Subject
	// HasSandbox asks the runtime whether it has a sandbox.
	HasSandbox func(ctx context.Context, id string) (bool, error)
	// Recheck has the table of hostPorts looked at and put right.
	Recheck func(why string)
	Mode    Mode
	// Interval is how often each pod is looked at, CheckInterval how often its CHECK
	// runs; 0 is never.
	Interval, CheckInterval time.Duration
}

// Watcher looks for drift. [Watcher.Run] looks; the other methods answer from memory.
type Watcher struct {
	Config
	now func() time.Time

	// What follows is Run's alone.
	pods      map[journal.Key]*pod
	byLink    map[string][]journal.Key // interface on the node -> attachments that have it
	refreshAt time.Time
	refused   bool        // the last refresh failed, and that was told
	remade    []time.Time // when sandboxes were given to be made anew, in the last hour
	changed   chan string // names of interfaces on the node
	asked     chan journal.Key
	answered  chan answer
	checking  bool

	mu     sync.Mutex            // guards told
	told   map[journal.Key]Drift // what Run last said of each pod that is or was drifted
	marked atomic.Pointer[map[string]bool]
}

// New returns a watcher.
func New(c Config) *Watcher {
	return &Watcher{
		Config: c, now: time.Now, pods: make(map[journal.Key]*pod), told: make(map[journal.Key]Drift),
		changed: make(chan string, 1024), asked: make(chan journal.Key, 1), answered: make(chan answer, 1),
	}
}

// pod is what Run knows of an attachment.
type pod struct {
	record *journal.Record
	due    time.Time // of the next look

	suspects []inspect.Finding // what the last look found, and no second one has yet
	found    []inspect.Finding // what two looks agreed on
	unseen   int               // looks in a row that saw nothing, for errors

	checkDue time.Time
	passed   bool             // CHECK has passed
	failed   bool             // the last CHECK failed, and none has confirmed that
	never    bool             // it was told that CHECK does not pass
	said     *inspect.Finding // what CHECK finds

	drift    *Drift
	repairs  int // in a row
	repairAt time.Time
	repaired time.Time
}

// all is what is amiss with the pod.
func (p *pod) all() []inspect.Finding {
	all := append([]inspect.Finding(nil), p.found...)
	if p.said != nil {
		all = append(all, *p.said)
	}
	return all
}
