package cri

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/upstream"
)

var errFake = errors.New("fake failure")

// unknownField is a field of a CRI that does not exist yet.
var unknownField = protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "from the future")

// fakeNetwork is a network plugin that only remembers.
type fakeNetwork struct {
	mu      sync.Mutex
	calls   []string
	unready error
	setUp   error
	tear    error
}

func (p *fakeNetwork) Name() string { return "cni" }

func (p *fakeNetwork) Plan(a cni.Attachment) (*cni.Attachment, error) {
	a.Network, a.ConfList = "mynet", json.RawMessage(`{"name":"mynet"}`)
	return &a, p.Status()
}

func (p *fakeNetwork) SetUpPod(_ context.Context, a *cni.Attachment) (json.RawMessage, error) {
	return json.RawMessage(`{"cniVersion":"1.0.0","ips":[{"address":"10.10.0.2/16"}]}`), p.call("ADD", a, p.setUp)
}

func (p *fakeNetwork) TearDownPod(_ context.Context, a *cni.Attachment) error {
	return p.call("DEL", a, p.tear)
}

func (p *fakeNetwork) CheckPod(context.Context, *cni.Attachment) error { return nil }

func (p *fakeNetwork) Status() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.unready
}

func (p *fakeNetwork) call(verb string, a *cni.Attachment, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, verb+" "+a.ContainerID)
	return err
}

// fakeRuntime is the container runtime: its sandboxes and its Status.
type fakeRuntime struct {
	mu      sync.Mutex
	ids     map[string]bool
	removed []string
	answer  upstream.Answer
}

func (r *fakeRuntime) List(context.Context) (map[string]bool, error) { return r.ids, nil }

func (r *fakeRuntime) Has(_ context.Context, id string) (bool, error) { return r.ids[id], nil }

func (r *fakeRuntime) NetNS(context.Context, string) (string, error) { return "", nil }

func (r *fakeRuntime) Status(context.Context) upstream.Answer { return r.answer }

func (r *fakeRuntime) remove(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed = append(r.removed, id)
	return nil
}

// fakeInstallation is crinet's configuration at the runtime.
type fakeInstallation struct {
	err error
	own string // a handler that crinet leaves alone
}

func (i *fakeInstallation) Ready() error               { return i.err }
func (i *fakeInstallation) Serves(handler string) bool { return handler == "" || handler != i.own }

// testNode is the hooks over a real engine and journal.
type testNode struct {
	*Hooks
	engine       *engine.Engine
	journal      *journal.Journal
	network      *fakeNetwork
	runtime      *fakeRuntime
	installation *fakeInstallation
	podCIDRs     *engine.PodCIDRs
	registry     *prometheus.Registry
}

func newNode(t *testing.T, options ...func(*Config)) *testNode {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	j, _, err := journal.Open(t.TempDir(), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &testNode{
		journal: j, network: new(fakeNetwork), runtime: &fakeRuntime{ids: make(map[string]bool)},
		installation: new(fakeInstallation), registry: prometheus.NewRegistry(),
	}
	engineMetrics, err := engine.NewMetrics(n.registry)
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := NewMetrics(n.registry)
	if err != nil {
		t.Fatal(err)
	}
	if n.podCIDRs, err = engine.NewPodCIDRs(j, nil, log); err != nil {
		t.Fatal(err)
	}
	n.engine = engine.New(engine.Config{
		Log: log, Plugin: n.network, Journal: j, Sandboxes: n.runtime, BootID: "boot", PodCIDRs: n.podCIDRs, Metrics: engineMetrics,
	})
	ctx, stop := context.WithCancel(context.Background())
	stop()
	t.Cleanup(func() { n.engine.Run(ctx) }) // ends its queue
	c := Config{
		Log: log, Engine: n.engine, Runtime: n.runtime, Installation: n.installation, PodCIDRs: n.podCIDRs, Metrics: metrics, Remove: n.runtime.remove,
	}
	for _, option := range options {
		option(&c)
	}
	n.Hooks = New(c)
	return n
}

func podNamed(id string) journal.Pod {
	return journal.Pod{Namespace: "ns", Name: "pod-" + id, UID: "uid-" + id}
}

// add is the runtime's ADD.
func (n *testNode) add(ctx context.Context, id string) error {
	_, err := n.engine.Attach(ctx, &engine.Call{ContainerID: id, NetNS: "/proc/self/ns/net", IfName: "eth0", Pod: podNamed(id)})
	return err
}

func (n *testNode) mustAdd(t *testing.T, id string) {
	t.Helper()
	if err := n.add(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) record(t *testing.T, id string) *journal.Record {
	t.Helper()
	r, err := n.journal.Get(journal.Key{ContainerID: id, IfName: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func podConfig(id string, network runtimeapi.NamespaceMode) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "ns", Name: "pod-" + id, Uid: "uid-" + id},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: network},
		}},
	}
}
