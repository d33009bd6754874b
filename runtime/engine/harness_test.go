package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/prometheus/client_golang/prometheus"
)

// thisNetNS is a network namespace that is always there.
const thisNetNS = "/proc/self/ns/net"

const testResult = `{"cniVersion":"1.0.0","ips":[{"address":"10.10.0.2/16"}]}`

// fakePlugin is a network plugin whose verbs fail as told. It logs its calls.
type fakePlugin struct {
	name string

	mu      sync.Mutex
	calls   []string
	seen    []cni.Attachment                             // by TearDownPod, without Begun
	begun   time.Time                                    // that of the last
	setUp   func(context.Context, *cni.Attachment) error // nil succeeds
	tear    func(context.Context, *cni.Attachment) error // nil succeeds
	check   func(context.Context, *cni.Attachment) error // nil succeeds
	unready error
}

func (p *fakePlugin) Name() string { return p.name }

func (p *fakePlugin) Plan(a cni.Attachment) (*cni.Attachment, error) {
	if err := p.Status(); err != nil {
		return nil, err
	}
	a.Network, a.ConfList = "mynet", json.RawMessage(`{"name":"mynet"}`)
	a.Builtin = []cni.Builtin{{Type: "other"}}
	return &a, nil
}

func (p *fakePlugin) SetUpPod(ctx context.Context, a *cni.Attachment) (json.RawMessage, error) {
	if err := p.call(ctx, "ADD", a, p.setUp); err != nil {
		return nil, err
	}
	return json.RawMessage(testResult), nil
}

func (p *fakePlugin) TearDownPod(ctx context.Context, a *cni.Attachment) error {
	p.mu.Lock()
	seen := *a
	p.begun, seen.Begun = a.Begun, time.Time{}
	p.seen = append(p.seen, seen)
	p.mu.Unlock()
	return p.call(ctx, "DEL", a, p.tear)
}

func (p *fakePlugin) CheckPod(ctx context.Context, a *cni.Attachment) error {
	return p.call(ctx, "CHECK", a, p.check)
}

func (p *fakePlugin) Status() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unready
}

func (p *fakePlugin) call(ctx context.Context, verb string, a *cni.Attachment, f func(context.Context, *cni.Attachment) error) error {
	p.mu.Lock()
	p.calls = append(p.calls, verb+" "+a.ContainerID)
	p.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx, a)
}

func (p *fakePlugin) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.calls...)
}

// fakeSandboxes is the container runtime's list.
type fakeSandboxes struct {
	mu  sync.Mutex
	ids map[string]bool
	err error

	netns map[string]string // by sandbox id
}

func (s *fakeSandboxes) NetNS(_ context.Context, id string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.netns[id], s.err
}

func (s *fakeSandboxes) List(context.Context) (map[string]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids, s.err
}

func (s *fakeSandboxes) Has(_ context.Context, id string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id], s.err
}

// failingJournal fails changes while told to.
type failingJournal struct {
	*journal.Journal
	mu    sync.Mutex
	fail  error // of changes
	read  error // of Get
	count int   // of Get
}

func (j *failingJournal) failReads(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.read, j.count = err, 0
}

func (j *failingJournal) reads() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.count
}

func (j *failingJournal) Get(key journal.Key) (*journal.Record, error) {
	j.mu.Lock()
	j.count++
	err := j.read
	j.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return j.Journal.Get(key)
}

func (j *failingJournal) set(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.fail = err
}

func (j *failingJournal) failure() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.fail
}

func (j *failingJournal) Put(r *journal.Record) error {
	if err := j.failure(); err != nil {
		return err
	}
	return j.Journal.Put(r)
}

func (j *failingJournal) PutDurable(r *journal.Record) error {
	if err := j.failure(); err != nil {
		return err
	}
	return j.Journal.PutDurable(r)
}

func (j *failingJournal) Delete(key journal.Key) error {
	if err := j.failure(); err != nil {
		return err
	}
	return j.Journal.Delete(key)
}

// testNode is an engine over a fake plugin and runtime and a real journal.
type testNode struct {
	*Engine
	plugin    *fakePlugin
	sandboxes *fakeSandboxes
	journal   *failingJournal
}

func newNode(t *testing.T, options ...func(*Config)) *testNode {
	t.Helper()
	j, _, err := journal.Open(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return nodeOver(t, &fakePlugin{name: "cni"}, &failingJournal{Journal: j}, options...)
}

// nodeOver makes an engine as after a restart: over what an earlier one left.
func nodeOver(t *testing.T, plugin *fakePlugin, j *failingJournal, options ...func(*Config)) *testNode {
	t.Helper()
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	cidrs, err := NewPodCIDRs(j.Journal, nil, log)
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{plugin: plugin, sandboxes: &fakeSandboxes{ids: map[string]bool{}}, journal: j}
	c := Config{
		Log: log, Plugin: plugin, Journal: j, Sandboxes: n.sandboxes, BootID: "boot", PodCIDRs: cidrs, Metrics: metrics,
	}
	for _, option := range options {
		option(&c)
	}
	n.Engine = New(c)
	t.Cleanup(n.queue.close)
	return n
}

func call(id string) *Call {
	return &Call{
		ContainerID: id, NetNS: thisNetNS, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "pod-" + id}},
		Pod:  podNamed(id),
	}
}

func podNamed(id string) journal.Pod {
	return journal.Pod{Namespace: "ns", Name: "pod-" + id, UID: "uid-" + id}
}

func key(id string) journal.Key { return journal.Key{ContainerID: id, IfName: "eth0"} }

// record returns the journal's record of a sandbox, or nil.
func (n *testNode) record(t *testing.T, id string) *journal.Record {
	t.Helper()
	r, err := n.journal.Get(key(id))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (n *testNode) mustAdd(t *testing.T, id string) {
	t.Helper()
	if _, err := n.Attach(t.Context(), call(id)); err != nil {
		t.Fatal(err)
	}
}

var errFake = errors.New("fake failure")

// failTimes returns a verb that fails n times.
func failTimes(n int) func(context.Context, *cni.Attachment) error {
	var mu sync.Mutex
	return func(context.Context, *cni.Attachment) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n >= 0 {
			return fmt.Errorf("%w, %d to come", errFake, n)
		}
		return nil
	}
}
