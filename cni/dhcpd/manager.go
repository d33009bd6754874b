package dhcpd

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// poll is how often it is looked whether a daemon is still needed that the
// selected network does not need.
const poll = 3 * time.Second

// Config is what a [Manager] works with. All fields are required.
type Config struct {
	Log *slog.Logger
	// Find returns the path of the plugin's binary.
	Find func() (string, error)
	// RunDir is where the daemons' pid files are. A reboot clears it.
	RunDir string
	// Selected returns the sockets that the selected network's plugins use. It
	// answers from memory.
	Selected func() []string
	// InUse returns the sockets that attached pods' plugins use. It may take
	// its time: it is called at the start, and before a daemon is ended.
	InUse func() ([]string, error)
	// Started is called when there is a daemon without leases where there may
	// have been one with leases. It is given a goroutine.
	Started func(ctx context.Context, socket string)
}

// Daemon is what there is to know of a daemon.
type Daemon struct {
	Socket string
	PID    int    // 0 while it does not run
	Own    bool   // started by crinetd, maybe by an earlier one
	Starts uint64 // by this crinetd
	Reason string // why it does not run; empty if it does
}

// Manager keeps the daemons that are needed.
type Manager struct {
	config  Config
	changed chan struct{} // holds one
	wg      sync.WaitGroup

	mu      sync.Mutex
	daemons map[string]*daemon // by socket
}

// New returns a manager. Nothing is started before Run.
func New(c Config) *Manager {
	return &Manager{config: c, changed: make(chan struct{}, 1), daemons: make(map[string]*daemon)}
}

// SelectionChanged tells Run that another network may be selected. It does not
// wait.
func (m *Manager) SelectionChanged() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run starts, watches and ends daemons until ctx ends; then it lets them be.
func (m *Manager) Run(ctx context.Context) {
	defer m.wg.Wait()
	m.adopt(ctx)
	idle := map[string]bool{} // sockets that nobody needed at the last look
	for {
		extra := m.look(ctx, idle)
		var again <-chan time.Time
		timer := time.NewTimer(poll)
		if extra {
			again = timer.C
		}
		select {
		case <-ctx.Done():
		case <-m.changed:
		case <-again:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// adopt starts what attached pods need, whatever is selected.
func (m *Manager) adopt(ctx context.Context) {
	sockets, err := m.config.InUse()
	if err != nil {
		m.config.Log.Warn("pods with dhcp leases are not known; their daemon is not started for them", "err", err)
		return
	}
	for _, socket := range sockets {
		m.ensure(ctx, socket)
	}
}

// look starts what the selected network needs, and ends what nobody has needed
// twice in a row. It says whether there is any daemon that the selected network
// does not need.
func (m *Manager) look(ctx context.Context, idle map[string]bool) (extra bool) {
	selected := m.config.Selected()
	for _, socket := range selected {
		m.ensure(ctx, socket)
		delete(idle, socket)
	}
	var spare []string
	for _, socket := range m.sockets() {
		if !slices.Contains(selected, socket) {
			spare = append(spare, socket)
		}
	}
	if len(spare) == 0 {
		return false
	}
	used, err := m.config.InUse()
	if err != nil {
		m.config.Log.Warn("a dhcp daemon that may not be needed is kept", "err", err)
		return true
	}
	for _, socket := range spare {
		switch {
		case slices.Contains(used, socket):
			delete(idle, socket)
		case !idle[socket]:
			idle[socket] = true
		default:
			m.drop(socket)
			delete(idle, socket)
		}
	}
	return true
}

// ensure has a daemon watched.
func (m *Manager) ensure(ctx context.Context, socket string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.daemons[socket] != nil {
		return
	}
	ctx, cancel := context.WithCancelCause(ctx)
	d := newDaemon(&m.config, socket)
	d.cancel, d.done = cancel, make(chan struct{})
	m.daemons[socket] = d
	m.wg.Go(func() {
		defer close(d.done)
		d.run(ctx)
	})
}

// drop ends a daemon, if it is crinetd's, and its watching.
func (m *Manager) drop(socket string) {
	m.mu.Lock()
	d := m.daemons[socket]
	m.mu.Unlock()
	d.cancel(errUnneeded)
	<-d.done
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.daemons, socket)
}

func (m *Manager) sockets() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for socket := range m.daemons {
		all = append(all, socket)
	}
	slices.Sort(all)
	return all
}

// Ready says why pods cannot be added to a network yet: its daemon does not
// run. It answers from memory.
func (m *Manager) Ready(confList []byte) error {
	for _, socket := range Sockets(confList) {
		m.mu.Lock()
		d := m.daemons[socket]
		m.mu.Unlock()
		reason := "is not started yet"
		if d != nil {
			reason = d.view().Reason
		}
		if reason != "" {
			return fmt.Errorf("the dhcp daemon at %s %s", socket, reason)
		}
	}
	return nil
}

// Daemons returns what there is to know, by socket.
func (m *Manager) Daemons() []Daemon {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Daemon
	for _, d := range m.daemons {
		all = append(all, d.view())
	}
	slices.SortFunc(all, func(a, b Daemon) int { return strings.Compare(a.Socket, b.Socket) })
	return all
}
