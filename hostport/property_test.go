package hostport

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// errInjected is the failure of a netlink call.
var errInjected = errors.New("injected failure")

// faulty lets calls to the kernel fail, before or after they have had their effect.
type faulty struct {
	host
	mu     sync.Mutex
	fails  func(call string) bool // whether the call fails
	failed map[string]int         // call -> how often it failed
	after  func() bool            // whether a failing call has its effect
}

func (f *faulty) do(call string, effect func() error) error {
	f.mu.Lock()
	fails := f.fails(call)
	if fails {
		f.failed[call]++
	}
	has := !fails || f.after()
	f.mu.Unlock()
	var err error
	if has {
		err = effect()
	}
	if fails {
		err = errors.Join(err, fmt.Errorf("%s: %w", call, errInjected))
	}
	return err
}

func (f *faulty) Intact() (why string, err error) {
	err = f.do("Intact", func() error { why, err = f.host.Intact(); return err })
	return why, err
}

func (f *faulty) Elements(sets ...string) (found map[kernel.Key]kernel.Element, err error) {
	err = f.do("Elements", func() error { found, err = f.host.Elements(sets...); return err })
	return found, err
}

func (f *faulty) Change(u kernel.Update) error {
	return f.do("Change", func() error { return f.host.Change(u) })
}

func (f *faulty) Replace(all []kernel.Element) error {
	return f.do("Replace", func() error { return f.host.Replace(all) })
}

func (f *faulty) PathTo(ip netip.Addr) (p kernel.Path, err error) {
	err = f.do("PathTo", func() error { p, err = f.host.PathTo(ip); return err })
	return p, err
}

func (f *faulty) RouteLocalnet(names []string) (state map[string]bool, err error) {
	err = f.do("RouteLocalnet", func() error { state, err = f.host.RouteLocalnet(names); return err })
	return state, err
}

func (f *faulty) SetRouteLocalnet(name string, on bool) error {
	return f.do(fmt.Sprint("SetRouteLocalnet ", on), func() error { return f.host.SetRouteLocalnet(name, on) })
}

func (f *faulty) AddressesOn(names []string) (found []netip.Addr, err error) {
	err = f.do("AddressesOn", func() error { found, err = f.host.AddressesOn(names); return err })
	return found, err
}

func (f *faulty) DeleteFlowsIf(q kernel.FlowQuery, match func(kernel.Flow) (bool, error)) error {
	return f.do("DeleteFlowsIf", func() error { return f.host.DeleteFlowsIf(q, match) })
}

// breakHost puts a faulty kernel under the Manager.
func breakHost(m *Manager, fails func(call string) bool, after func() bool) *faulty {
	f := &faulty{host: m.host, fails: fails, after: after, failed: make(map[string]int)}
	m.host = f
	return f
}

// testRecords are Records in memory.
type testRecords struct {
	mu     sync.Mutex
	values map[string][]byte
	err    error
}

func (r *testRecords) PutMeta(name string, value []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	if r.values == nil {
		r.values = make(map[string][]byte)
	}
	r.values[name] = value
	return nil
}

func (r *testRecords) Meta(name string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.values[name], r.err
}

// propertySeed is CRINET_HOSTPORT_SEED, or the time.
func propertySeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("CRINET_HOSTPORT_SEED")
	if text == "" {
		return uint64(time.Now().UnixNano())
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("CRINET_HOSTPORT_SEED: %v", err)
	}
	return seed
}

// TestKernelFollowsDesiredState adds and removes pods at random, while others flush
// and change the table and single netlink calls fail. When that is over the kernel
// must be equal to the desired state, computed anew from the pods that stand; and
// when the pods are gone, nothing may be left.
func TestKernelFollowsDesiredState(t *testing.T) {
	seed := propertySeed(t)
	for round := range uint64(3) {
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) {
			t.Logf("CRINET_HOSTPORT_SEED=%d", seed)
			followDesiredState(t, rand.New(rand.NewPCG(seed, round)))
		})
	}
}

func followDesiredState(t *testing.T, random *rand.Rand) {
	n := newTestNode(t, "cni0")
	before := n.node.run(t, "nft", "list", "ruleset")
	quiet := func(c *Config) {
		c.Log = slog.New(slog.DiscardHandler)
		c.CheckInterval = 100 * time.Millisecond
		c.Records = &testRecords{}
	}
	m := newManager(t, n.node, quiet)
	var chance struct {
		sync.Mutex
		of float64
	}
	faults := rand.New(rand.NewPCG(random.Uint64(), 0))
	f := breakHost(m, func(string) bool {
		chance.Lock()
		defer chance.Unlock()
		return faults.Float64() < chance.of
	}, func() bool { return faults.IntN(2) == 0 })
	setChance := func(of float64) {
		chance.Lock()
		defer chance.Unlock()
		chance.of = of
	}
	stop := run(t, t.Context(), n.node, m)
	setChance(0.1)
	for range 150 {
		pod := randomPod(t, random)
		switch random.IntN(10) {
		case 0, 1, 2:
			ignore(t, m.Unmap(t.Context(), pod.SandboxID))
		case 3:
			interfere(t, n.node, random)
		default:
			ignore(t, m.Map(t.Context(), pod))
		}
	}
	setChance(0)
	waitIntact(t, n.node, m, 10*time.Second)
	compareWithPods(t, n, m)
	if len(f.failed) < 5 {
		t.Errorf("too few calls failed for the test to mean something: %v", f.failed)
	}
	t.Logf("failed calls: %v", f.failed)

	for i := range 10 {
		mustUnmap(t, m, fmt.Sprint("sandbox-pod", i))
	}
	waitIntact(t, n.node, m, 10*time.Second)
	compareWithPods(t, n, m)
	m.mu.Lock()
	m.desired.set(needOfProtected, need{})
	isEmpty(t, m)
	m.mu.Unlock()
	stop() // it would put the table back
	if err := newManagerFor(t, n.node, onDemand).Sync(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, n.node.run(t, "nft", "list", "ruleset")); diff != "" {
		t.Errorf("the ruleset is not as it was: %s", diff)
	}
}

// ignore accepts conflicts between pods and injected failures.
func ignore(t *testing.T, err error) {
	t.Helper()
	var conflict *ConflictError
	if err != nil && !errors.Is(err, errInjected) && !errors.As(err, &conflict) {
		t.Fatal(err)
	}
}

// interfere changes the kernel as others do.
func interfere(t *testing.T, ns netns, random *rand.Rand) {
	t.Helper()
	scripts := []string{
		"flush ruleset", "delete table inet crinet", "flush map inet crinet ports4", "flush chain inet crinet guard",
		"add element inet crinet ports4 { tcp . 3 : 10.9.9.9 . 9 }", "delete element inet crinet ports6 { udp . 4 }",
		"add element inet crinet protected4 { 192.0.2.77 }", "flush set inet crinet route_localnet",
		"add rule inet crinet hostports drop", "flush map inet crinet masquerade4", "delete element inet crinet masquerade6 { fd00:1::3 }",
		"flush chain inet crinet outside_10.1.0.0/24", "add chain inet crinet outside_10.9.0.0/16", "add chain inet crinet stranger",
		"add element inet crinet masquerade4 { 10.1.0.99 : accept }",
	}
	if random.IntN(4) == 0 {
		ns.sysctl(t, "net/ipv4/conf/cni0/route_localnet", strconv.Itoa(random.IntN(2)))
		return
	}
	// It fails if what it changes is not there, which is as good.
	_, _ = ns.try(scripts[random.IntN(len(scripts))], "nft", "-f", "-")
}

// compareWithPods computes what the pods need anew and compares it with the kernel.
func compareWithPods(t *testing.T, n *testNode, m *Manager) {
	t.Helper()
	fresh := newDesired()
	m.mu.Lock()
	for id, p := range m.pods {
		known, err := m.factsAbout(p.pod)
		if err != nil {
			t.Error(err)
		}
		needed, err := needOf(p.pod, known)
		if err != nil {
			t.Error(err)
		}
		fresh.set(id, needed)
	}
	fresh.set(needOfRecord, recordNeed(m.recorded))
	m.mu.Unlock()
	k := kernel.New(n.node.fd(), newLayout())
	defer k.Close()
	found, err := k.Elements()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fresh.elements, found); diff != "" {
		t.Errorf("kernel (-pods +kernel):\n%s", diff)
	}
	eventually(t, 5*time.Second, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		needed, on := len(fresh.localnet) > 0, n.node.readSysctl(t, "net/ipv4/conf/cni0/route_localnet") == "1"
		if _, recorded := m.recorded["cni0"]; needed && !on || recorded && !needed {
			return fmt.Errorf("route_localnet is %v, needed: %v, recorded: %v", on, needed, recorded)
		}
		return nil
	})
}
