package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/hostport"
)

const (
	// LoanLimit is how long attachments are lent; then crinetd takes them back.
	LoanLimit = time.Minute
	// MaxLent is how many attachments a loan has at most.
	MaxLent = 2
	// LentPort is the port of a lent attachment that its hostPorts lead to.
	LentPort = 8080

	// lentFirst is the first of the lentPorts ports among which a loan's hostPorts are
	// looked for: below NodePorts and the kernel's own choice (ip_local_port_range).
	lentFirst, lentPorts = 20000, 10000
	// portTries is how many of them are tried until one is free.
	portTries = 20
)

// ErrLent says that a loan is under way; one at a time is enough.
var ErrLent = errors.New("crinetd lends throwaway attachments already")

// Loan is up to MaxLent throwaway attachments that somebody borrows: in flight while
// they are lent, never admitted as pods, undone by the queue if their DEL fails. Its
// methods may be called concurrently; they wait for each other.
type Loan struct {
	engine *Engine
	id     string
	plan   Planner
	ctx    context.Context
	stop   context.CancelCauseFunc
	done   chan struct{} // closed when all is given back

	mu    sync.Mutex // held during an operation; guards what follows
	lent  []*throwaway
	ended bool
}

// Lent is a borrowed attachment.
type Lent struct {
	Attachment cni.Attachment
	Addresses  []string // with prefix lengths
	// HostPorts lead to LentPort, tcp and udp; none if WhyNoHostPorts says why.
	HostPorts      []hostport.Mapping
	WhyNoHostPorts string
}

// Lend begins a loan. plan says by which network, nil the selected one; who is told
// to whoever asks meanwhile, with ErrLent. The loan ends with Return, when ctx does,
// after LoanLimit, and with Run. Without a network to add to it is refused.
func (e *Engine) Lend(ctx context.Context, who string, plan Planner) (*Loan, error) {
	if plan == nil {
		plan = e.selected.Plan
	}
	if _, err := plan(cni.Attachment{}); err != nil {
		return nil, fmt.Errorf("network not ready: %w", err)
	}
	l := &Loan{engine: e, id: rand.Text()[:10], plan: plan, done: make(chan struct{})}
	limited, cancel := context.WithTimeoutCause(ctx, e.loans.limit, fmt.Errorf("attachments are lent for %s at most", e.loans.limit))
	l.ctx, l.stop = context.WithCancelCause(limited)
	if err := e.loans.begin(l, who, e.now()); err != nil {
		cancel()
		return nil, err
	}
	context.AfterFunc(l.ctx, func() {
		defer cancel()
		if err := l.giveBack(l.ctx); err != nil {
			e.log.Warn("borrowed attachments are not removed yet; crinetd tries again", "borrower", who, "err", err)
		}
	})
	return l, nil
}

// Add makes one more attachment, with hostPorts if they are asked for. It takes as
// long as the plugins may, or until ctx or the loan ends.
func (l *Loan) Add(ctx context.Context, hostPorts bool) (*Lent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := context.Cause(l.ctx); err != nil {
		return nil, fmt.Errorf("the loan is over: %w", err)
	}
	if len(l.lent) == MaxLent {
		return nil, fmt.Errorf("a loan has %d attachments at most", MaxLent)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	t, err := l.reserve(ctx, hostPorts)
	if err != nil {
		return nil, err
	}
	l.lent = append(l.lent, t)
	if err := t.add(ctx); err != nil {
		return nil, err
	}
	lent := &Lent{Attachment: t.record.Attachment, Addresses: Addresses(t.record)}
	if hostPorts {
		lent.HostPorts, lent.WhyNoHostPorts = l.engine.mappedFor(t)
	}
	return lent, nil
}

// bound ends a call's context with the loan's.
func (l *Loan) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// reserve begins the flight of one more attachment and reserves its hostPorts: tcp
// and udp on a port that nobody has.
func (l *Loan) reserve(ctx context.Context, hostPorts bool) (t *throwaway, err error) {
	role := fmt.Sprintf("test-%d", len(l.lent)+1)
	name := fmt.Sprintf("crinet-%s-%s", role, l.id)
	if !hostPorts {
		return l.engine.newThrowaway(ctx, name, role, l.plan, nil)
	}
	for range portTries {
		n, err := rand.Int(rand.Reader, big.NewInt(lentPorts))
		if err != nil {
			return nil, err
		}
		port := uint16(lentFirst + n.Int64())
		t, err = l.engine.newThrowaway(ctx, name, role, l.plan, []hostport.Mapping{
			{Protocol: hostport.TCP, HostPort: port, ContainerPort: LentPort},
			{Protocol: hostport.UDP, HostPort: port, ContainerPort: LentPort},
		})
		if errors.Is(err, hostport.ErrUnavailable) {
			return l.engine.newThrowaway(ctx, name, role, l.plan, nil)
		}
		if !errors.As(err, new(*hostport.ConflictError)) {
			return t, err
		}
	}
	return nil, fmt.Errorf("no free hostPort in %d tries", portTries)
}

// mappedFor returns the hostPorts of an attachment that has been added, or why it has none.
func (e *Engine) mappedFor(t *throwaway) (ports []hostport.Mapping, why string) {
	switch {
	case e.mapsPorts && len(t.record.HostPorts) == 0:
		return nil, "hostPorts cannot be mapped on this node: crinetctl status says why"
	case e.mapsPorts:
		return t.record.HostPorts, ""
	case !e.passPorts:
		return nil, "hostPorts are not mapped on this node (--hostport)"
	}
	data := t.record.Attachment.CapabilityArgs[portMappings]
	if data == nil {
		return nil, "hostPorts are left to the network's plugins, and none of them declares the capability portMappings"
	}
	if err := json.Unmarshal(data, &ports); err != nil {
		return nil, err.Error()
	}
	return ports, ""
}

// Check is CHECK of the attachment that Add made as the index-th, from 0.
func (l *Loan) Check(ctx context.Context, index int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if index < 0 || index >= len(l.lent) {
		return fmt.Errorf("the loan has no attachment %d", index)
	}
	return l.engine.Check(ctx, l.lent[index].call.Key())
}

// Return removes all attachments and says what crinetd still has of them. Where a
// DEL failed, the queue goes on.
func (l *Loan) Return(ctx context.Context) (left []string, err error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	err = l.giveBack(ctx)
	l.stop(errors.New("all is given back"))
	return l.left(), err
}

// giveBack ends the loan, once.
func (l *Loan) giveBack(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil
	}
	l.ended = true
	defer close(l.done)
	defer l.engine.loans.end(l)
	errs := make([]error, len(l.lent))
	var all sync.WaitGroup
	for i, t := range l.lent {
		all.Go(func() { errs[i] = t.end(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// left says what journal and cache still have of the attachments.
func (l *Loan) left() (left []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.lent {
		id := t.call.ContainerID
		if r, err := l.engine.journal.Get(t.call.Key()); err != nil || r != nil {
			left = append(left, "the journal's record of "+id)
		}
		if l.engine.cache == nil {
			continue
		}
		if cached, err := l.engine.cache.Cached(id); err != nil || len(cached) > 0 {
			left = append(left, "the cached result of "+id)
		}
	}
	return left
}

// loans holds the loan that is under way.
type loans struct {
	limit time.Duration // of a loan

	mu    sync.Mutex
	loan  *Loan
	who   string
	since time.Time
	over  bool // crinetd ends
}

func (s *loans) begin(l *Loan, who string, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
		return errors.New("crinetd ends")
	case s.loan != nil:
		return fmt.Errorf("%w: to %s, since %s; for %s at most", ErrLent, s.who, s.since.Format(time.TimeOnly), s.limit)
	}
	s.loan, s.who, s.since = l, who, now
	return nil
}

func (s *loans) end(l *Loan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loan == l {
		s.loan = nil
	}
}

// runLoans waits for the end of ctx, takes back what is lent and waits for that.
func (e *Engine) runLoans(ctx context.Context) {
	<-ctx.Done()
	e.loans.mu.Lock()
	e.loans.over = true
	loan := e.loans.loan
	e.loans.mu.Unlock()
	if loan != nil {
		loan.stop(errors.New("crinetd ends"))
		<-loan.done // bounded by throwawayEnd and the plugin under way
	}
}
