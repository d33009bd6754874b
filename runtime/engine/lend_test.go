package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/internal/testkit"
)

// fakePorts holds hostPorts by who has them.
type fakePorts struct {
	mu       sync.Mutex
	reserved []hostport.Pod
	lacks    error // of Reserve
	refuse   int   // how many Reserve refuse
	mapped   map[string]hostport.Pod
}

func (p *fakePorts) Reserve(_ context.Context, pod hostport.Pod) (*hostport.Reservation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lacks != nil {
		return nil, p.lacks
	}
	if p.refuse--; p.refuse >= 0 {
		return nil, &hostport.ConflictError{Mapping: pod.Mappings[0], Holder: "pod ns/other"}
	}
	p.reserved = append(p.reserved, pod)
	return &hostport.Reservation{}, nil
}

func (p *fakePorts) Map(_ context.Context, pod hostport.Pod) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mapped[pod.SandboxID] = pod
	return nil
}

func (p *fakePorts) Unmap(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mapped, id)
	return nil
}

// lender is an engine that lends, with all that shows what is lent.
type lender struct {
	*testNode
	spaces *fakeNamespaces
	ports  *fakePorts
}

func newLender(t *testing.T, more ...func(*Config)) *lender {
	t.Helper()
	l := &lender{ports: &fakePorts{mapped: make(map[string]hostport.Pod)}}
	spaces, options := withTrials(0)
	l.spaces = spaces
	with := func(c *Config) { c.HostPorts, c.MapHostPorts = l.ports, true }
	l.testNode = newNode(t, append([]func(*Config){options, with}, more...)...)
	return l
}

// clean waits until nothing is lent and nothing left.
func (l *lender) clean(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, "all is given back", func() bool {
		records, err := l.Records()
		l.ports.mu.Lock()
		defer l.ports.mu.Unlock()
		return err == nil && len(records) == 0 && l.spaces.left() == 0 && len(l.ports.mapped) == 0 && l.Pending() == 0 &&
			len(l.flights.inFlight()) == 0 && len(l.flights.pods) == 0
	})
}

func mustLend(ctx context.Context, t *testing.T, l *lender) *Loan {
	t.Helper()
	loan, err := l.Lend(ctx, "a test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return loan
}

// What is lent is journalled, in flight and mapped, and is no pod's; given back,
// nothing is left of it. A third attachment is refused, and one of a loan that is over.
func TestLend(t *testing.T) {
	l := newLender(t)
	l.ports.refuse = 3
	loan := mustLend(t.Context(), t, l)
	first, err := loan.Add(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loan.Add(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if _, err := loan.Add(t.Context(), false); err == nil {
		t.Error("a third attachment is lent")
	}
	if len(first.HostPorts) != 2 || first.HostPorts[0].HostPort < lentFirst || first.WhyNoHostPorts != "" || !slices.Equal(first.Addresses, []string{"10.10.0.2/16"}) {
		t.Errorf("lent is %+v", first)
	}
	if mapped := l.ports.mapped[first.Attachment.ContainerID]; len(mapped.Mappings) != 2 {
		t.Errorf("mapped is %+v", mapped)
	}
	records, err := l.Records()
	if err != nil || len(records) != 2 || !records[0].Trial || !l.Stands(records[0]) {
		t.Fatalf("the journal has %+v, %v", records, err)
	}
	if err := l.sweep(t.Context()); err != nil || l.Pending() != 0 {
		t.Errorf("the sweeper takes what is lent: %d, %v", l.Pending(), err)
	}
	if pods, err := l.MappedPods(); err != nil || len(pods) != 1 {
		t.Errorf("mapped at a start: %+v, %v", pods, err)
	}
	if err := loan.Check(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if err := loan.Check(t.Context(), 2); err == nil {
		t.Error("an attachment that is not lent is checked")
	}
	if left, err := loan.Return(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("after the return: %q, %v", left, err)
	}
	if _, err := loan.Add(t.Context(), false); err == nil {
		t.Error("a loan that is over lends")
	}
	l.clean(t)
	if n := l.AddFailures(); n != 0 {
		t.Errorf("%d ADDs failed", n)
	}
}

// A borrower that is gone, also in the middle of an ADD, gives back what it has.
func TestLendToOneThatDies(t *testing.T) {
	for _, when := range []string{"between", "during ADD"} {
		t.Run(when, func(t *testing.T) {
			l := newLender(t)
			ctx, die := context.WithCancel(t.Context())
			defer die()
			loan := mustLend(ctx, t, l)
			if _, err := loan.Add(ctx, true); err != nil {
				t.Fatal(err)
			}
			if when == "during ADD" {
				l.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
					die()
					<-ctx.Done()
					return ctx.Err()
				}
				if _, err := loan.Add(t.Context(), false); err == nil {
					t.Error("ADD succeeds")
				}
			}
			die()
			<-loan.done
			l.clean(t)
			mustLend(t.Context(), t, l) // the next may borrow
		})
	}
}

// One loan at a time: the second is told who has the first. Without a network there
// is none.
func TestLendRefuses(t *testing.T) {
	l := newLender(t)
	loan := mustLend(t.Context(), t, l)
	if _, err := l.Lend(t.Context(), "another", nil); !errors.Is(err, ErrLent) || !strings.Contains(err.Error(), "a test") {
		t.Errorf("the second loan: %v", err)
	}
	if _, err := loan.Return(t.Context()); err != nil {
		t.Error(err)
	}
	l.plugin.unready = errFake
	if _, err := l.Lend(t.Context(), "another", nil); !errors.Is(err, errFake) || !strings.Contains(err.Error(), "network not ready") {
		t.Errorf("without a network: %v", err)
	}
	l.ports.refuse = 1000
	l.plugin.unready = nil
	if _, err := mustLend(t.Context(), t, l).Add(t.Context(), true); err == nil || !strings.Contains(err.Error(), "no free hostPort") {
		t.Errorf("without a free hostPort: %v", err)
	}
}

// An ADD that fails, or a DEL, leaves nothing once the plugin works again.
func TestLendFails(t *testing.T) {
	l := newLender(t)
	l.plugin.setUp, l.plugin.tear = failTimes(1), failTimes(1)
	loan := mustLend(t.Context(), t, l)
	if _, err := loan.Add(t.Context(), true); !errors.Is(err, errFake) {
		t.Errorf("ADD: %v", err)
	}
	left, err := loan.Return(t.Context())
	if !errors.Is(err, errFake) || len(left) != 1 || !strings.Contains(left[0], "journal") {
		t.Errorf("the return ends with %v and leaves %q", err, left)
	}
	l.clean(t)
	if n := l.AddFailures(); n != 0 {
		t.Errorf("the ADD counts as a pod's")
	}
}

// What a crash leaves of a loan is undone at the next start and not mapped again.
func TestLendOverACrash(t *testing.T) {
	l := newLender(t)
	loan := mustLend(t.Context(), t, l)
	for _, ports := range []bool{true, false} {
		if _, err := loan.Add(t.Context(), ports); err != nil {
			t.Fatal(err)
		}
	}
	next := nodeOver(t, l.plugin, l.journal, func(c *Config) {
		c.HostPorts, c.MapHostPorts, c.Namespaces = l.ports, true, l.spaces
	})
	if pods, err := next.MappedPods(); err != nil || len(pods) != 0 {
		t.Errorf("the next start maps %+v, %v", pods, err)
	}
	if err := next.Recover(); err != nil {
		t.Fatal(err)
	}
	after := &lender{testNode: next, spaces: l.spaces, ports: l.ports}
	after.clean(t)
}

// crinetd's end takes back what is lent before the queue is cut off.
func TestLendAtTheEnd(t *testing.T) {
	l := newLender(t)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	if _, err := mustLend(t.Context(), t, l).Add(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	stop()
	running.Wait()
	l.clean(t)
	if _, err := l.Lend(t.Context(), "late", nil); err == nil {
		t.Error("crinetd lends at its end")
	}
}

// After its limit a loan is taken back, also in the middle of an ADD.
func TestLendForSoLong(t *testing.T) {
	l := newLender(t)
	l.loans.limit = 50 * time.Millisecond
	loan := mustLend(t.Context(), t, l)
	l.plugin.setUp = func(ctx context.Context, _ *cni.Attachment) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	if _, err := loan.Add(t.Context(), true); err == nil || !strings.Contains(err.Error(), "lent for 50ms at most") {
		t.Errorf("ADD ends with %v", err)
	}
	l.clean(t)
}

// A DEL that hangs does not keep a borrower that goes, nor crinetd's end: the queue,
// or the next start, goes on with it.
func TestLendWhoseDelHangs(t *testing.T) {
	l := newLender(t)
	ctx, die := context.WithCancel(t.Context())
	defer die()
	loan := mustLend(ctx, t, l)
	if _, err := loan.Add(ctx, false); err != nil {
		t.Fatal(err)
	}
	var hung atomic.Bool
	l.plugin.tear = func(ctx context.Context, _ *cni.Attachment) error {
		if hung.Swap(true) {
			return nil
		}
		die()
		<-ctx.Done()
		return ctx.Err()
	}
	if _, err := loan.Return(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("the return ends with %v", err)
	}
	l.clean(t)
}

// Where hostPorts cannot be mapped, attachments are lent without, and that is said.
func TestLendWithoutHostPorts(t *testing.T) {
	for name, c := range map[string]struct {
		lacks  error
		option func(*Config)
		want   string
	}{
		"unavailable": {hostport.ErrUnavailable, func(*Config) {}, "cannot be mapped on this node"},
		"off":         {nil, func(c *Config) { c.MapHostPorts = false }, "--hostport"},
		"no plugin":   {nil, func(c *Config) { c.MapHostPorts, c.PassPortMappings = false, true }, "portMappings"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLender(t, c.option)
			l.ports.lacks = c.lacks
			loan, err := l.Lend(t.Context(), "a test", func(a cni.Attachment) (*cni.Attachment, error) {
				plan, err := l.plugin.Plan(a)
				if err == nil {
					plan.CapabilityArgs = nil // as for a list that declares none
				}
				return plan, err
			})
			if err != nil {
				t.Fatal(err)
			}
			lent, err := loan.Add(t.Context(), true)
			if err != nil || len(lent.HostPorts) != 0 || !strings.Contains(lent.WhyNoHostPorts, c.want) {
				t.Errorf("lent is %+v, %v", lent, err)
			}
		})
	}
}
