package hostport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// ConflictMode says what a hostPort gets on which a process of the host listens.
type ConflictMode string

// The values of --hostport-conflict.
const (
	// Refuse refuses the pod.
	Refuse ConflictMode = "refuse"
	// Warn logs it and goes on: what arrives at the port then goes to the pod.
	Warn ConflictMode = "warn"
)

// ErrUnavailable is the error of pods with hostPorts where none can be mapped; the
// error around it says why.
var ErrUnavailable = errors.New("hostPorts can't be mapped on this node")

// defaultCheckInterval is the safety net under the notifications.
const defaultCheckInterval = time.Minute

// Config is what a Manager is made of.
type Config struct {
	// Log is required.
	Log *slog.Logger
	// Conflict defaults to Refuse.
	Conflict ConflictMode
	// NetNS is a file descriptor of the network namespace to work in; 0 means the
	// one that the process is in. The caller keeps it open.
	NetNS int
	// CheckInterval is how often the table is compared with the Manager's memory
	// although nobody said that it changed. It defaults to a minute.
	CheckInterval time.Duration
	// OnHeal, if set, is called after the table was put right, with what was wrong
	// with it. It must not call the Manager.
	OnHeal func(reason string)
}

// Manager maps hostPorts. Its methods may be called concurrently; calls for one
// sandbox should come one after the other.
type Manager struct {
	log      *slog.Logger
	mode     ConflictMode
	netns    int
	interval time.Duration
	onHeal   func(string)
	// alarms holds at most one reason to look at the table.
	alarms chan string
	flows  tracker

	mu     sync.Mutex // guards what follows, and orders transactions
	nft    *nft
	claims claims
	pods   map[string]*mapped
	// inFlight are the holders of reservations.
	inFlight map[*owner]struct{}
	elems    map[elemKey]counted
	localnet map[string]*interfaceUse
	// managing is set between Sync and Remove.
	managing bool
	// trouble is why nothing can be mapped, nil if all is well.
	trouble error
}

// mapped is a pod in the Manager's memory.
type mapped struct {
	owner    *owner
	pod      Pod
	elements []element
	// iface is where the pod needs route_localnet, "" if nowhere.
	iface string
}

// counted is an element that one or more pods need.
type counted struct {
	element
	uses int
}

// New makes a Manager. It doesn't touch the kernel.
func New(c Config) (*Manager, error) {
	if c.Log == nil {
		return nil, errors.New("hostport: a logger is required")
	}
	switch c.Conflict {
	case "":
		c.Conflict = Refuse
	case Refuse, Warn:
	default:
		return nil, fmt.Errorf("hostport: unknown conflict mode %q; it is %s or %s", c.Conflict, Refuse, Warn)
	}
	if c.CheckInterval <= 0 {
		c.CheckInterval = defaultCheckInterval
	}
	if c.OnHeal == nil {
		c.OnHeal = func(string) {}
	}
	return &Manager{
		log: c.Log, mode: c.Conflict, netns: c.NetNS, interval: c.CheckInterval, onHeal: c.OnHeal,
		alarms:   make(chan string, 1),
		flows:    tracker{netns: c.NetNS},
		nft:      newNFT(c.NetNS),
		claims:   make(claims),
		pods:     make(map[string]*mapped),
		inFlight: make(map[*owner]struct{}),
		elems:    make(map[elemKey]counted),
		localnet: make(map[string]*interfaceUse),
	}, nil
}

// Close gives the Manager's sockets back, when Run has returned. The table stays,
// and works on.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.nft.close(), m.flows.close()); err != nil {
		return fmt.Errorf("close hostport's netlink sockets: %w", err)
	}
	return nil
}

// Available says whether hostPorts can be mapped: nil, or an error that wraps
// ErrUnavailable with the reason. It answers from memory; while Run runs, a
// reason that has gone is noticed within the check interval.
func (m *Manager) Available() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.available()
}

func (m *Manager) available() error {
	switch {
	case m.trouble != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, m.trouble)
	case !m.managing:
		return fmt.Errorf("%w: not synchronized yet", ErrUnavailable)
	}
	return nil
}

// Count says how many pods have mappings, and how many mappings these are.
func (m *Manager) Count() (pods, mappings int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		mappings += len(p.owner.mappings)
	}
	return len(m.pods), mappings
}

// Reservation holds the ports of a pod that has no sandbox yet.
type Reservation struct {
	manager *Manager
	owner   *owner
}

// Reserve admits a pod: it fails if hostPorts can't be mapped (ErrUnavailable), or
// if one of the pod's is held by another pod, mapped or in flight, or by a
// process of the host (*ConflictError). The pod needs no sandbox ID and no
// addresses yet. The ports are the pod's until Map takes them over for the same
// namespace, name and UID, or until Release. A pod without mappings is always
// admitted.
func (m *Manager) Reserve(ctx context.Context, pod Pod) (*Reservation, error) {
	if len(pod.Mappings) == 0 {
		return &Reservation{}, nil
	}
	o := &owner{identity: pod.identity(), mappings: pod.Mappings}
	if err := m.claim(o); err != nil {
		return nil, fmt.Errorf("reserve the hostPorts of %s: %w", pod, err)
	}
	r := &Reservation{manager: m, owner: o}
	if err := m.checkListeners(ctx, pod); err != nil {
		r.Release()
		return nil, fmt.Errorf("reserve the hostPorts of %s: %w", pod, err)
	}
	return r, nil
}

func (m *Manager) claim(o *owner) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.available(); err != nil {
		return err
	}
	if err := m.claims.check(o.mappings, func(*owner) bool { return false }); err != nil {
		return err
	}
	m.claims.add(o)
	m.inFlight[o] = struct{}{}
	return nil
}

// Release gives back what Map has not taken over. It may be called at any time,
// and again.
func (r *Reservation) Release() {
	if r.manager == nil {
		return
	}
	m := r.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unreserve(r.owner)
}

func (m *Manager) unreserve(o *owner) {
	if _, ok := m.inFlight[o]; ok {
		m.claims.release(o)
		delete(m.inFlight, o)
	}
}

// checkListeners applies the conflict mode to processes that listen on the ports.
func (m *Manager) checkListeners(ctx context.Context, pod Pod) error {
	conflicts, err := findListeners(ctx, m.netns, pod.Mappings)
	if errors.Is(err, errNoSockDiag) {
		m.log.WarnContext(ctx, "whether a host process listens on a hostPort can't be seen",
			"namespace", pod.Namespace, "pod", pod.Name, "reason", err)
		return nil
	}
	if err != nil {
		return err
	}
	if m.mode == Refuse && len(conflicts) > 0 {
		var all problems
		for _, c := range conflicts {
			all.add(c)
		}
		return all.err()
	}
	for _, c := range conflicts {
		m.log.WarnContext(ctx, "a host process loses a port to a pod",
			"namespace", pod.Namespace, "pod", pod.Name, "hostPort", c.Mapping.String(), "holder", c.Holder)
	}
	return nil
}
