package drift

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/inspect"
	"github.com/crinet-project/crinet/internal/netnstest"
	"github.com/crinet-project/crinet/internal/testkit"
	"github.com/crinet-project/crinet/runtime/journal"
)

// ownNode says that the process has a network namespace of its own.
const ownNode = "CRINET_TEST_OWN_NODE"

// TestMain runs the tests in a network namespace of their own: it is the node.
func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Getenv(ownNode) != "" || os.Geteuid() != 0 {
		return m.Run()
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), ownNode+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var exit *exec.ExitError
	switch err := again.Run(); {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	default:
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
}

// sandbox is a network namespace of a test's own.
type sandbox struct{ file *os.File }

func (s sandbox) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

func newSandbox(t testing.TB) sandbox {
	t.Helper()
	return sandbox{netnstest.New(t)}
}

// ip runs commands of ip(8), one a line, on the node, or inside a sandbox.
func ip(t testing.TB, inside *sandbox, commands string) {
	t.Helper()
	for command := range strings.SplitSeq(strings.TrimSpace(commands), "\n") {
		args := append([]string{"ip"}, strings.Fields(command)...)
		if inside != nil {
			args = append([]string{"nsenter", "--net=" + inside.path()}, args...)
		}
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
}

// attachments stand in for the engine: records, a lock for each, CHECK.
type attachments struct {
	mu      sync.Mutex
	records map[journal.Key]*journal.Record
	locks   map[journal.Key]*sync.Mutex
	check   func(*journal.Record) error
	meta    map[string][]byte
	gone    map[string]bool // sandboxes that the runtime does not have
}

func (a *attachments) Records() (all []*journal.Record, _ error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.records {
		clone := *r
		all = append(all, &clone)
	}
	return all, nil
}

func (a *attachments) Stands(r *journal.Record) bool { return r.State == journal.Attached }

func (a *attachments) lock(key journal.Key) *sync.Mutex {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.locks[key] == nil {
		a.locks[key] = new(sync.Mutex)
	}
	return a.locks[key]
}

func (a *attachments) get(key journal.Key) *journal.Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.records[key]
}

func (a *attachments) put(r *journal.Record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.records[r.Key()] = r
}

func (a *attachments) forget(key journal.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.records, key)
}

func (a *attachments) Hold(ctx context.Context, key journal.Key, do func(*journal.Record)) (bool, error) {
	lock := a.lock(key)
	for !lock.TryLock() {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	defer lock.Unlock()
	r := a.get(key)
	if r == nil || !a.Stands(r) {
		return false, nil
	}
	do(r)
	return true, nil
}

func (a *attachments) CheckHeld(ctx context.Context, key journal.Key) (held bool, said, err error) {
	held, err = a.Hold(ctx, key, func(r *journal.Record) { said = a.check(r) })
	return held, said, err
}

func (a *attachments) PutMeta(name string, value []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.meta[name] = value
	return nil
}

func (a *attachments) Meta(name string) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.meta[name], nil
}

// bed is a watcher on a node with pods.
type bed struct {
	*Watcher
	t        testing.TB
	engine   *attachments
	log      *testkit.Log
	plugins  *builtin.Plugins
	dir      string
	mu       sync.Mutex
	lacking  map[string]string // sandbox -> what it lacks in the table
	rechecks int
	registry *prometheus.Registry
}

// metric is the sum of a metric over its labels.
func (b *bed) metric(name string) (sum float64) {
	b.t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// looks is how often pods were looked at.
func (b *bed) looks() float64 { return b.metric("crinet_drift_looks_total") }

const testInterval = 200 * time.Millisecond

func newBed(t testing.TB, mode Mode) *bed {
	t.Helper()
	b := &bed{
		t: t, log: new(testkit.Log), plugins: builtin.New(slog.New(slog.NewTextHandler(io.Discard, nil))), dir: t.TempDir(), lacking: make(map[string]string),
		engine: &attachments{
			records: make(map[journal.Key]*journal.Record), locks: make(map[journal.Key]*sync.Mutex), meta: make(map[string][]byte),
			gone: make(map[string]bool), check: func(*journal.Record) error { return nil },
		},
	}
	b.registry = prometheus.NewRegistry()
	metrics, err := NewMetrics(b.registry)
	if err != nil {
		t.Fatal(err)
	}
	b.Watcher = New(Config{
		Log: slog.New(slog.NewTextHandler(b.log, nil)), Engine: b.engine, Meta: b.engine, Metrics: metrics, Subjects: b.subjects,
		HasSandbox: func(_ context.Context, id string) (bool, error) { return !b.engine.gone[id], nil },
		Recheck: func(string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.rechecks++
		},
		Mode: mode, Interval: testInterval,
	})
	return b
}

func (b *bed) subjects() func(*journal.Record) inspect.Subject {
	return func(r *journal.Record) inspect.Subject {
		return inspect.Subject{Attachment: r.Attachment, Hairpin: hostport.HairpinFor(r.Attachment.ConfList), Table: func(context.Context) ([]string, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if text := b.lacking[r.Attachment.ContainerID]; text != "" {
				return []string{text}, nil
			}
			return nil, nil
		}}
	}
}

// start runs the watcher until the end of the test.
func (b *bed) start() {
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-ended
		if b.t.Failed() {
			b.t.Log(b.log)
		}
	})
}

// Configurations of the pods' interface. Each test has a bridge of its own.
const (
	onBridge = `{"type":"bridge","bridge":"BRIDGE","isDefaultGateway":true,"ipam":{"type":"host-local","dataDir":"DIR",
		"ranges":[[{"subnet":"10.20.0.0/16"}],[{"subnet":"fd00:20::/64"}]],"routes":[{"dst":"192.0.2.0/24"}]}}`
	byPTP = `{"type":"ptp","ipam":{"type":"host-local","dataDir":"DIR","ranges":[[{"subnet":"10.21.0.0/16"}],[{"subnet":"fd00:21::/64"}]],
		"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}}`
)

// testPod is a pod that was attached by a built-in plugin.
type testPod struct {
	sandbox
	key  journal.Key
	host string // its end on the node
	conf string
}

// config fills a configuration in, as a plugin's own.
func (b *bed) config(conf string) (plugin string) {
	plugin = strings.NewReplacer("BRIDGE", "br0", "DIR", b.dir).Replace(conf)
	return `{"cniVersion":"1.0.0","name":"net",` + plugin[1:]
}

// add attaches a pod. Its conflist has more plugins, which were executed.
func (b *bed) add(name, conf string, more ...string) *testPod {
	b.t.Helper()
	pod := &testPod{sandbox: newSandbox(b.t), key: journal.Key{ContainerID: "sandbox-" + name, IfName: "eth0"}, conf: b.config(conf)}
	ip(b.t, &pod.sandbox, "link set lo up")
	var named struct{ Type string }
	if err := json.Unmarshal([]byte(pod.conf), &named); err != nil {
		b.t.Fatal(err)
	}
	lock := b.engine.lock(pod.key)
	lock.Lock()
	defer lock.Unlock()
	b.engine.put(&journal.Record{State: journal.Attaching, Attachment: cni.Attachment{ContainerID: pod.key.ContainerID, IfName: "eth0", NetNS: pod.path()}})
	result, err := b.plugins.Execute(b.t.Context(), &builtin.Call{
		Type: named.Type, Command: "ADD", ContainerID: pod.key.ContainerID, NetNS: pod.path(), IfName: "eth0", Config: []byte(pod.conf),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, link := range inspect.HostLinks(result) {
		if strings.HasPrefix(link, "veth") {
			pod.host = link
		}
	}
	if _, err := hostport.SetHairpin(b.t.Context(), pod.path(), "eth0", 0); err != nil {
		b.t.Fatal(err)
	}
	plugins := []string{pod.conf}
	for _, typ := range more {
		plugins = append(plugins, `{"type":"`+typ+`"}`)
	}
	b.engine.put(&journal.Record{
		State: journal.Attached, Pod: journal.Pod{Namespace: "default", Name: name}, Created: time.Now(),
		Attachment: cni.Attachment{
			ContainerID: pod.key.ContainerID, NetNS: pod.path(), IfName: "eth0", Network: "net", Result: result,
			ConfList: json.RawMessage(`{"cniVersion":"1.0.0","name":"net","plugins":[` + strings.Join(plugins, ",") + `]}`),
			Builtin:  []cni.Builtin{{Type: named.Type}},
		},
	})
	return pod
}

// del removes a pod's network as the engine does.
func (b *bed) del(pod *testPod) {
	b.t.Helper()
	lock := b.engine.lock(pod.key)
	lock.Lock()
	defer lock.Unlock()
	var named struct{ Type string }
	_ = json.Unmarshal([]byte(pod.conf), &named) // it was read before
	_, err := b.plugins.Execute(context.WithoutCancel(b.t.Context()), &builtin.Call{
		Type: named.Type, Command: "DEL", ContainerID: pod.key.ContainerID, NetNS: pod.path(), IfName: "eth0", Config: []byte(pod.conf),
	})
	if err != nil {
		b.t.Error(err)
	}
	b.engine.forget(pod.key)
	if err := pod.file.Close(); err != nil { // the namespace goes with it
		b.t.Error(err)
	}
}

// clear takes what the pods of a test have left on the node.
func (b *bed) clear(pods ...*testPod) {
	b.t.Cleanup(func() {
		for _, pod := range pods {
			_ = exec.Command("ip", "link", "del", pod.host).Run() // it may be gone
		}
		_ = exec.Command("ip", "link", "del", "br0").Run()
	})
}

// named are the parts that are amiss with a pod now.
func (b *bed) named(pod *testPod) (parts []string) {
	d := b.Of(pod.key)
	if d == nil || !d.Ended.IsZero() {
		return nil
	}
	for _, f := range d.Findings {
		if !slices.Contains(parts, f.Part) {
			parts = append(parts, f.Part)
		}
	}
	return parts
}

// await waits until ok holds.
func (b *bed) await(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("%s did not come; the log is\n%s", what, b.log)
		}
	}
}

// rounds waits until each pod was looked at so often from now on.
func (b *bed) rounds(n int) {
	b.t.Helper()
	records, _ := b.engine.Records() // never fails
	want := b.looks() + float64(n*len(records))
	b.await("the looks", func() bool { return b.looks() >= want })
}

// output runs a command on the node.
func output(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
