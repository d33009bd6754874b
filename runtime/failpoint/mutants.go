//go:build failpoint

package failpoint

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
)

// Where host-local and libcni keep what some mutants remove.
const (
	hostLocalDir = "/var/lib/cni/networks"
	cacheDir     = "/var/lib/crinet/cni/results"
)

// lateBy is how much too late [LateUnmap] is.
const lateBy = 500 * time.Millisecond

func mutant() Mutant { return Mutant(os.Getenv(MutantVariable)) }

// wrongJournal has the faults of a journal.
type wrongJournal struct {
	engine.Journal
	mutant Mutant

	mu   *sync.Mutex
	lost map[journal.Key]*journal.Record // what [LostWrite] remembers, and has not written
}

func newWrongJournal(j engine.Journal) wrongJournal {
	return wrongJournal{Journal: j, mutant: mutant(), mu: new(sync.Mutex), lost: make(map[journal.Key]*journal.Record)}
}

func (w wrongJournal) Put(r *journal.Record) error {
	if w.mutant == RecordFirst && r.State == journal.Detaching {
		return nil // DEL begins, and the record is gone
	}
	if w.mutant != LostWrite || r.State != journal.Attached {
		return w.Journal.Put(w.kept(r))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	remembered := *r
	w.lost[r.Key()] = &remembered
	return nil
}

// known is the record that somebody gets who reads r.
func (w wrongJournal) known(r *journal.Record) *journal.Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	remembered := w.lost[r.Key()]
	if remembered == nil || r.State != journal.Attaching || !r.Created.Equal(remembered.Created) {
		return r
	}
	r = new(journal.Record)
	*r = *remembered
	return r
}

func (w wrongJournal) PutDurable(r *journal.Record) error { return w.Journal.PutDurable(w.kept(r)) }

func (w wrongJournal) kept(r *journal.Record) *journal.Record {
	if w.mutant != ForgottenHostPorts {
		return r
	}
	without := *r
	without.HostPorts = nil
	return &without
}

func (w wrongJournal) Get(key journal.Key) (*journal.Record, error) {
	r, err := w.Journal.Get(key)
	if err != nil || r == nil {
		return r, err
	}
	r = w.known(r)
	if w.mutant == RecordFirst && r.State == journal.Attached && slices.ContainsFunc(r.Steps, func(s journal.StepTime) bool { return s.Step == string(engine.StepStart) }) {
		err = w.Journal.Delete(key)
		cached, _ := filepath.Glob(filepath.Join(cacheDir, "*-"+key.ContainerID+"-*")) // the pattern is well formed
		for _, file := range cached {
			_ = os.Remove(file) // what stays makes the mutant weaker, which the test sees
		}
	}
	return w.today(r), err
}

func (w wrongJournal) Sandbox(prefix string) ([]*journal.Record, error) {
	records, err := w.Journal.Sandbox(prefix)
	for i, r := range records {
		r = w.known(r)
		records[i] = w.today(r)
		if w.mutant == StaleState && prefix == "" && r.State == journal.Attached {
			stale := *r
			stale.State = journal.Attaching
			records[i] = &stale
		}
	}
	return records, err
}

// today puts the configuration of the conf dir into a record.
func (w wrongJournal) today(r *journal.Record) *journal.Record {
	if w.mutant != TodaysConfiguration || r.State != journal.Attached {
		return r
	}
	text, err := os.ReadFile(MutantConf)
	if err != nil {
		return r
	}
	changed := *r
	changed.Attachment.ConfList = text
	return &changed
}

// wrongRunner has the faults of plugins that are executed.
type wrongRunner struct {
	next   cni.Runner
	mutant Mutant
}

func (w wrongRunner) Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	del := slices.Index(env, "CNI_COMMAND=DEL")
	if del < 0 {
		return w.next.Run(ctx, path, stdin, env)
	}
	if w.mutant == DroppedDel {
		return nil, nil, nil
	}
	stdout, stderr, err = w.next.Run(ctx, path, stdin, env)
	if w.mutant == AddAfterDel && err == nil {
		again := slices.Clone(env)
		again[del] = "CNI_COMMAND=ADD"
		_, _, _ = w.next.Run(ctx, path, stdin, again)
	}
	return stdout, stderr, err
}

// wrongBuiltin has the faults of plugins that are built in.
type wrongBuiltin struct {
	next   cni.BuiltinRunner
	mutant Mutant

	mu    *sync.Mutex // guards what follows
	first *[]byte
}

func (w wrongBuiltin) Execute(ctx context.Context, call *builtin.Call) (stdout []byte, err error) {
	switch {
	case w.mutant == DroppedDel && call.Command == "DEL":
		return nil, nil
	case w.mutant == FreedAddresses && call.Command == "ADD":
		files, _ := filepath.Glob(filepath.Join(hostLocalDir, MutantNetwork, "*")) // the pattern is well formed
		for _, file := range files {
			if _, err := netip.ParseAddr(filepath.Base(file)); err == nil || filepath.Base(file) == "last_reserved_ip.0" {
				_ = os.Remove(file)
			}
		}
	}
	stdout, err = w.next.Execute(ctx, call)
	if w.mutant != EarlierAnswer || call.Command != "ADD" || err != nil {
		return stdout, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if *w.first == nil {
		*w.first = slices.Clone(stdout)
	}
	return slices.Clone(*w.first), nil
}

// wrongHostPorts has the faults of the hostPort table.
type wrongHostPorts struct {
	engine.HostPorts
	mutant Mutant
}

func (w wrongHostPorts) Unmap(ctx context.Context, sandboxID string) error {
	switch w.mutant {
	case ElementLeft:
		return nil
	case LateUnmap:
		time.AfterFunc(lateBy, func() { _ = w.HostPorts.Unmap(context.WithoutCancel(ctx), sandboxID) })
		return nil
	default:
		return w.HostPorts.Unmap(ctx, sandboxID)
	}
}
