package dhcpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// poll is the time from one look at the daemons to the next. One that nobody
	// needs is ended after that time: a pod that is being added may not be in
	// the journal yet.
	poll = 2 * time.Second
	// healthy is how long a daemon runs before the wait after its end is
	// firstWait again. The wait doubles up to maxWait.
	healthy   = time.Minute
	firstWait = time.Second
	maxWait   = time.Minute
)

// Config is what a [Manager] works with. All fields are required.
type Config struct {
	Log *slog.Logger
	// Find returns the path of the plugin's binary.
	Find func() (string, error)
	// RunDir is where the daemons' pid files are. A reboot clears it.
	RunDir string
	// Selected returns the selected network's configuration list, nil if no
	// network is selected, from memory.
	Selected    func() []byte
	Attachments Attachments
}

// Daemon is the state of one daemon.
type Daemon struct {
	Socket string
	PID    int    // 0 while it does not run; 1 if the init system listens and the daemon's own pid is not known
	Own    bool   // started by crinetd, maybe by an earlier one
	Starts uint64 // by this crinetd
	Reason string // why it does not run; empty if it does
}

// daemon is what Run keeps of one daemon. Others read Daemon alone.
type daemon struct {
	Daemon
	process *os.Process // of an own daemon, else nil
	last    int         // the pid of the last one that ran
	retry   backoff.Backoff
	again   time.Time // when it may be started next
	began   time.Time // when it was started last
	spare   time.Time // since when nobody needs it; zero if it is needed
}

// Manager keeps the daemons running that are needed.
type Manager struct {
	config  Config
	initPID int           // the init system's
	changed chan struct{} // holds one
	adopted bool          // the pods' daemons are among daemons

	mu      sync.Mutex         // held by Run to write, and by others to read
	daemons map[string]*daemon // by socket
}

// New returns a manager. It starts nothing before Run.
func New(c Config) *Manager {
	return &Manager{config: c, initPID: 1, changed: make(chan struct{}, 1), daemons: make(map[string]*daemon)}
}

// SelectionChanged tells Run that another network may be selected. It does not
// wait.
func (m *Manager) SelectionChanged() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run starts, watches and ends daemons until ctx ends. It does not end them then.
func (m *Manager) Run(ctx context.Context) {
	var renewing sync.WaitGroup
	defer renewing.Wait()
	for ctx.Err() == nil {
		needed, known := m.needed()
		for _, socket := range needed {
			if m.daemons[socket] == nil {
				m.write(func() { m.daemons[socket] = newDaemon(socket) })
			}
		}
		for socket, d := range m.daemons {
			switch {
			case slices.Contains(needed, socket) || !known:
				d.spare = time.Time{}
				if m.tend(ctx, d) {
					renewing.Go(func() { m.renew(ctx, socket) })
				}
			case d.spare.IsZero():
				d.spare = time.Now()
			case time.Since(d.spare) >= poll:
				m.drop(d)
			}
		}
		select {
		case <-ctx.Done():
		case <-m.changed:
		case <-time.After(poll):
		}
	}
}

func newDaemon(socket string) *daemon {
	return &daemon{
		Daemon: Daemon{Socket: socket, Reason: notStarted},
		retry:  backoff.Backoff{First: firstWait, Max: maxWait},
	}
}

func (m *Manager) write(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// needed returns the sockets that the selected network uses, and those that pods
// use. It looks into the journal at the start, and while there is a daemon that
// the selected network does not use; known is false if that fails.
func (m *Manager) needed() (sockets []string, known bool) {
	sockets = Sockets(m.config.Selected())
	extra := func(d Daemon) bool { return !slices.Contains(sockets, d.Socket) }
	if m.adopted && !slices.ContainsFunc(m.Daemons(), extra) {
		return sockets, true
	}
	all, err := m.config.Attachments.Attachments()
	if err != nil {
		m.config.Log.Warn("the pods with dhcp leases are not known: no daemon is started for them, and none is ended", "err", err)
		return sockets, false
	}
	m.adopted = true
	for _, a := range all {
		sockets = append(sockets, Sockets(a.ConfList)...)
	}
	return sockets, true
}

// tend looks at a daemon and starts it if nobody listens. It returns true if the
// daemon that runs has no leases where there may have been one that had.
func (m *Manager) tend(ctx context.Context, d *daemon) (fresh bool) {
	pid, err := m.find(ctx, d.Socket)
	started := false
	switch {
	case err == nil:
		if time.Since(d.began) >= healthy {
			d.retry.Reset()
		}
	case nobodyListens(err) && !time.Now().Before(d.again):
		started, d.began = true, time.Now()
		d.again = d.began.Add(d.retry.Next())
		pid, err = m.start(ctx, d)
	case nobodyListens(err) && d.PID != 0:
		err = fmt.Errorf("has ended (process %d) and is started again at %s", d.PID, d.again.Format(time.TimeOnly))
	case nobodyListens(err) || d.PID != 0:
		return false // it waits for the next attempt, or is busy
	default:
		err = fmt.Errorf("cannot be reached: %w", err)
	}
	if ctx.Err() != nil {
		return false
	}
	if err != nil {
		if d.Reason != err.Error() {
			m.config.Log.Error("the dhcp daemon does not run: leases are not renewed, pods get none; crinetd goes on trying", "socket", d.Socket, "err", err)
		}
		m.write(func() { d.PID, d.Reason = 0, err.Error() })
		return false
	}
	m.up(d, pid, started)
	fresh = started || d.last != 0 && d.last != pid
	d.last = pid
	return fresh
}

// up notes a daemon that runs. One that crinetd has started has written its pid
// where it was told to.
func (m *Manager) up(d *daemon, pid int, started bool) {
	own, known := readPID(m.pidFile(d.Socket)) == pid, d.PID == pid
	m.write(func() {
		d.PID, d.Own, d.Reason = pid, own, ""
		if started {
			d.Starts++
		}
	})
	if known {
		return
	}
	d.process = nil
	if own {
		d.process, _ = os.FindProcess(pid) // never fails on Unix
	}
	what := "a dhcp daemon runs already and is used"
	switch {
	case started:
		what = "dhcp daemon started"
	case own:
		what = "dhcp daemon of an earlier crinetd taken over, with its leases"
	}
	m.config.Log.Info(what, "socket", d.Socket, "pid", pid)
}

// drop ends a daemon that nobody needs, if it is crinetd's, and forgets it.
func (m *Manager) drop(d *daemon) {
	log := m.config.Log.With("socket", d.Socket, "pid", d.PID)
	if d.process == nil {
		log.Info("no network and no pod needs the dhcp daemon any more; it is not crinetd's and is left running")
	} else if err := end(d.process); err != nil {
		log.Warn("no network and no pod needs the dhcp daemon any more, but it cannot be ended", "err", err)
	} else {
		log.Info("dhcp daemon ended: no network and no pod needs it any more")
	}
	m.write(func() { delete(m.daemons, d.Socket) })
}

// notStarted is a daemon's reason before the first look at its socket.
const notStarted = "is not started yet"

// Ready returns why pods cannot be added to a network yet: its daemon does not
// run. It answers from memory.
func (m *Manager) Ready(confList []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, socket := range Sockets(confList) {
		reason := notStarted
		if d := m.daemons[socket]; d != nil {
			reason = d.Reason
		}
		if reason != "" {
			return errors.New("the dhcp daemon at " + socket + " " + reason)
		}
	}
	return nil
}

// Daemons returns the state of the daemons that are needed, sorted by socket.
func (m *Manager) Daemons() []Daemon {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Daemon
	for _, d := range m.daemons {
		all = append(all, d.Daemon)
	}
	slices.SortFunc(all, func(a, b Daemon) int { return strings.Compare(a.Socket, b.Socket) })
	return all
}
