package dhcpd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// startTimeout is how long a daemon may take to listen.
	startTimeout = 10 * time.Second
	// listenPoll is how often it is tried whether it listens.
	listenPoll = 10 * time.Millisecond
	// watchPoll is how often it is tried whether a running one still listens.
	watchPoll = 5 * time.Second
	// stopTimeout is how long it may take to end.
	stopTimeout = 5 * time.Second
	// healthy is the time after which a daemon that ends is started again at
	// once; else the wait doubles from firstWait to mostWait.
	healthy   = time.Minute
	firstWait = time.Second
	mostWait  = time.Minute
)

// errUnneeded is the cause for which a daemon is ended. When crinetd ends there
// is another one.
var errUnneeded = errors.New("no network and no pod needs it any more")

// daemon watches over one daemon.
type daemon struct {
	config  *Config
	log     *slog.Logger
	socket  string
	pidFile string
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed when run has ended

	mu    sync.Mutex
	state Daemon
}

func newDaemon(c *Config, socket string) *daemon {
	sum := sha256.Sum256([]byte(socket))
	return &daemon{
		config: c, socket: socket, log: c.Log.With("socket", socket),
		pidFile: filepath.Join(c.RunDir, fmt.Sprintf("dhcp-%x.pid", sum[:4])),
		state:   Daemon{Socket: socket, Reason: "is not started yet"},
	}
}

func (d *daemon) view() Daemon {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.state
}

func (d *daemon) set(f func(*Daemon)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(&d.state)
}

// run has the daemon running until ctx ends.
func (d *daemon) run(ctx context.Context) {
	var renewing sync.WaitGroup
	defer renewing.Wait()
	failures := 0 // in a row
	known := 0    // the pid of the last one that ran
	for ctx.Err() == nil {
		p, err := connect(ctx, d.socket)
		started := nobodyListens(err)
		if started {
			p, err = d.start(ctx)
		}
		if err != nil {
			failures++
			d.failed(ctx, err, wait(failures))
			continue
		}
		d.up(p, started)
		if started || (known != 0 && known != p.pid) { // else it may have leases
			renewing.Go(func() { d.config.Started(ctx, d.socket) })
		}
		known = p.pid
		began := time.Now()
		err = d.watch(ctx, p)
		p.close()
		if ctx.Err() != nil {
			return
		}
		if failures++; time.Since(began) >= healthy {
			failures = 0
		}
		d.failed(ctx, err, wait(failures-1))
	}
}

// wait is how long to wait after so many failures in a row.
func wait(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	return min(firstWait<<min(failures-1, 10), mostWait)
}

// failed reports a daemon that does not run, and waits.
func (d *daemon) failed(ctx context.Context, err error, wait time.Duration) {
	if ctx.Err() != nil {
		return
	}
	d.log.Error("the dhcp daemon does not run: leases are not renewed, pods get none; it is started again", "in", wait, "err", err)
	d.set(func(s *Daemon) {
		s.PID = 0
		if wait > 0 { // else it is up before anybody has asked
			s.Reason = err.Error()
		}
	})
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}

// up notes a daemon that runs.
func (d *daemon) up(p *process, started bool) {
	own := started || d.owns(p.pid)
	d.set(func(s *Daemon) {
		s.PID, s.Own, s.Reason = p.pid, own, ""
		if started {
			s.Starts++
		}
	})
	switch {
	case started:
		d.log.Info("dhcp daemon started", "pid", p.pid)
	case own:
		d.log.Info("dhcp daemon of an earlier crinetd taken over, with its leases", "pid", p.pid)
	default:
		d.log.Info("a dhcp daemon runs already and is used", "pid", p.pid)
	}
}

// owns says whether a listening process is one that crinetd has started: then
// it has written its pid where it was told to.
func (d *daemon) owns(pid int) bool {
	text, err := os.ReadFile(d.pidFile)
	return err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(pid)
}

// start starts a daemon and waits until it listens.
func (d *daemon) start(ctx context.Context) (p *process, err error) {
	if !filepath.IsAbs(d.socket) {
		return nil, errors.New("cannot be started: ipam.daemonSocketPath is no absolute path")
	}
	path, err := d.config.Find()
	if err != nil {
		return nil, fmt.Errorf("cannot be started: %w", err)
	}
	if err := removeStale(d.socket); err != nil {
		return nil, fmt.Errorf("cannot be started: %w", err)
	}
	program, err := launch(path, "daemon", "-socketpath", d.socket, "-pidfile", d.pidFile)
	if err != nil {
		return nil, fmt.Errorf("cannot be started: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		p, err := connect(ctx, d.socket)
		if err == nil {
			return p, nil
		}
		select {
		case how := <-program.ended:
			if how == nil {
				how = errors.New("exit status 0")
			}
			return nil, fmt.Errorf("%s ended before it listened, its output is in crinetd's log: %w", path, how)
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not listen after %v: %w", path, startTimeout, errors.Join(err, program.kill()))
		case <-time.After(listenPoll):
		}
	}
}

// watch waits until the daemon is gone or does not listen any more, and returns
// what happened. When ctx ends because the daemon is not needed, it is ended if
// it is crinetd's.
func (d *daemon) watch(ctx context.Context, p *process) error {
	deaf := 0
	for {
		gone := p.wait(ctx, watchPoll)
		switch {
		case ctx.Err() != nil:
			if errors.Is(context.Cause(ctx), errUnneeded) {
				d.end(p)
			}
			return nil
		case gone:
			return fmt.Errorf("ended (pid %d)", p.pid)
		}
		other, err := connect(ctx, d.socket)
		if err == nil {
			other.close()
			deaf = 0
			continue
		}
		if !nobodyListens(err) {
			continue // it is busy
		}
		if deaf++; deaf < 2 {
			continue
		}
		err = fmt.Errorf("does not listen any more (pid %d): %w", p.pid, err)
		if d.view().Own {
			// Nobody can reach it, nor the leases that it holds.
			err = errors.Join(err, p.end(stopTimeout))
		}
		return err
	}
}

// end ends a daemon that nobody needs.
func (d *daemon) end(p *process) {
	if !d.view().Own {
		d.log.Info("the dhcp daemon is not needed any more; it is not crinetd's, and left running", "pid", p.pid)
		return
	}
	if err := p.end(stopTimeout); err != nil {
		d.log.Warn("the dhcp daemon is not needed any more, but cannot be ended", "pid", p.pid, "err", err)
		return
	}
	d.log.Info("dhcp daemon ended: "+errUnneeded.Error(), "pid", p.pid)
}
