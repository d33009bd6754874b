package hostport

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/crinet-project/crinet/hostport/kernel"
)

// ConflictMode says what happens to a hostPort that a process of the host listens on.
type ConflictMode string

// The values of --hostport-conflict.
const (
	// Refuse refuses the pod.
	Refuse ConflictMode = "refuse"
	// Warn logs the conflict and maps the port: what arrives there goes to the pod.
	Warn ConflictMode = "warn"
)

// ErrUnavailable is the error of pods that need the table where there cannot be one;
// the error that wraps it says why.
var ErrUnavailable = errors.New("hostPorts can't be mapped on this node, nor pods masqueraded")

// defaultCheckInterval bounds how long a change goes unnoticed that no notification
// tells of.
const defaultCheckInterval = time.Minute

// kubeIPVS is the interface on which kube-proxy in IPVS mode keeps the addresses
// of Services.
const kubeIPVS = "kube-ipvs0"

// Records keeps values over restarts of the daemon. The journal is one.
type Records interface {
	// PutMeta stores a value durably before it returns.
	PutMeta(name string, value []byte) error
	// Meta returns a stored value, nil if there is none.
	Meta(name string) ([]byte, error)
}

// Config is the configuration of a Manager.
type Config struct {
	// Log is required.
	Log *slog.Logger
	// Conflict defaults to Refuse.
	Conflict ConflictMode
	// NetNS is a file descriptor of the network namespace to work in; 0 means the
	// one that the process is in. The caller keeps it open.
	NetNS int
	// CheckInterval is how often the kernel is compared with the desired state
	// without a notification of a change. It defaults to a minute.
	CheckInterval time.Duration
	// OnHeal, if set, is called after the table was put right, with what was wrong
	// with it. It must not call the Manager.
	OnHeal func(reason string)
	// Records stores on which interfaces route_localnet was switched on, so that a
	// later run switches it off even if the table is flushed in between. Without it
	// only the table says so.
	Records Records
	// OnDemand says that the table exists only while a pod needs something in it: for
	// a node whose hostPorts are somebody else's.
	OnDemand bool
	// ProtectedInterfaces are interfaces of the node whose addresses are never
	// translated. It defaults to kube-ipvs0; an empty list that is not nil protects
	// nothing.
	ProtectedInterfaces []string
}

// Manager maps hostPorts. Its methods may be called concurrently; calls for one
// sandbox must come one after the other.
type Manager struct {
	log       *slog.Logger
	mode      ConflictMode
	interval  time.Duration
	onHeal    func(string)
	records   Records
	protected []string
	host      host
	netns     int // what host works in, see Config
	// alarms and moved hold at most one reason to look at the table, and at the
	// protected addresses.
	alarms, moved chan string
	limits        limits
	onDemand      bool
	// synced is closed when Sync was called: the kernel holds no more than is known.
	synced chan struct{}

	mu     sync.Mutex // guards what follows, and orders transactions
	claims claims
	pods   map[string]*mapped // sandbox ID -> pod
	// inFlight are the holders of reservations.
	inFlight map[*owner]struct{}
	desired  *desired
	// recorded are the interfaces on which crinet switched route_localnet on and has
	// not switched it off; saved is what Records has of them.
	recorded, saved map[string]struct{}
	// nodePorts are those of kube-proxy in IPVS mode, each with its ipset.
	// nodePortTrouble is why they could not be read when that was tried last.
	nodePorts       map[kernel.NodePort]string
	nodePortTrouble string
	// stuck is why route_localnet could not be switched off when it was tried last.
	stuck error
	// managing is set by Sync.
	managing bool
	// absent says that there is no table, since nobody needs it.
	absent bool
	// lacking is why there cannot be a table, found out while there is none.
	lacking error
	// trouble is why nothing can be mapped, nil if all is well.
	trouble error
}

// mapped is a pod whose mappings stand.
type mapped struct {
	owner *owner
	pod   Pod
	full  need // what the pod needs
	need  need // that, less what it must leave to others
}

// New makes a Manager. It does not touch the kernel.
func New(c Config) (*Manager, error) {
	if c.Log == nil {
		return nil, errors.New("hostport: a logger is required")
	}
	switch c.Conflict {
	case "":
		c.Conflict = Refuse
	case Refuse, Warn:
	default:
		return nil, fmt.Errorf("hostport: unknown conflict mode %q; it must be %s or %s", c.Conflict, Refuse, Warn)
	}
	if c.CheckInterval <= 0 {
		c.CheckInterval = defaultCheckInterval
	}
	if c.OnHeal == nil {
		c.OnHeal = func(string) {}
	}
	switch {
	case c.OnDemand: // nothing is translated
		c.ProtectedInterfaces = nil
	case c.ProtectedInterfaces == nil:
		c.ProtectedInterfaces = []string{kubeIPVS}
	}
	m := &Manager{
		log: c.Log, mode: c.Conflict, interval: c.CheckInterval, onHeal: c.OnHeal,
		records: c.Records, protected: c.ProtectedInterfaces, onDemand: c.OnDemand,
		host: kernel.New(c.NetNS, newLayout()), netns: c.NetNS,
		alarms: make(chan string, 1), moved: make(chan string, 1),
		claims: make(claims), inFlight: make(map[*owner]struct{}),
		synced: make(chan struct{}),
	}
	m.forget()
	return m, nil
}

// Close closes the Manager's sockets. It must be called after Run has returned. The
// table stays, and works on.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.host.Close(); err != nil {
		return fmt.Errorf("close hostport's netlink sockets: %w", err)
	}
	return nil
}

// Available returns nil if pods can have what they need in the table, or else an error that wraps
// ErrUnavailable with the reason. It answers from memory; while Run runs, it is at
// most the check interval behind.
func (m *Manager) Available() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.available()
}

func (m *Manager) available() error {
	switch {
	case m.trouble != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, m.trouble)
	case m.lacking != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, m.lacking)
	case !m.managing:
		return fmt.Errorf("%w: not synchronized yet", ErrUnavailable)
	}
	return nil
}

// Count returns how many pods have mappings of ours, and how many these are.
func (m *Manager) Count() (pods, mappings int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pods {
		if n := len(p.pod.Mappings); n > 0 && !p.pod.Foreign {
			pods, mappings = pods+1, mappings+n
		}
	}
	return pods, mappings
}

// forget empties the memory, but for reservations and the record of interfaces.
func (m *Manager) forget() {
	m.pods = make(map[string]*mapped)
	m.desired = newDesired()
	m.claims = make(claims)
	for o := range m.inFlight {
		m.claims.add(o)
	}
	if m.recorded == nil {
		m.recorded, m.saved = make(map[string]struct{}), make(map[string]struct{})
	}
}

// raise asks Run to look at the table. One pending alarm is enough.
func raise(alarms chan string, what string) {
	select {
	case alarms <- what:
	default:
	}
}
