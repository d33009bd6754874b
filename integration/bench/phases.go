package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/integration/node"
)

// phase is a part of a call: what happens in it, and how long it takes.
type phase struct {
	name string
	took []float64 // in milliseconds, round by round
}

// timeline are a call's phases, one after the other.
type timeline struct {
	name   string
	phases []phase
}

func (l *timeline) add(took ...time.Duration) {
	for i, t := range took {
		l.phases[i].took = append(l.phases[i].took, millis(t))
	}
}

func newTimeline(name string, phases ...string) *timeline {
	l := &timeline{name: name}
	for _, p := range phases {
		l.phases = append(l.phases, phase{name: p})
	}
	return l
}

// The phases of a start, and of a stop. The network is all that happens between the
// first exec of a plugin and the end of the last; of crinetd's part of it, ADD is
// what crinetd does, and the rest are the processes crinet and loopback.
const (
	phaseBefore    = "containerd, before the network"
	phaseProcesses = "the network: processes"
	phaseADD       = "the network: ADD inside crinetd"
	phaseAfter     = "containerd and runc, after the network"
)

// phases measures the parts of a pod's start and stop, both ways.
func (s *sides) phases(ctx context.Context, o options, t *table) (err error) {
	w := networks()[0]
	if err := s.use(ctx, w); err != nil {
		return err
	}
	watch, err := watchExecs(s.node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, watch.close()) }()
	all := phaseLines()
	for round := range warmups + o.rounds {
		for _, i := range []int{round % 2, 1 - round%2} {
			run, stop, err := s.phasesOf(ctx, w, watch, fmt.Sprintf("phases-%d-%d", round, i), i)
			if err != nil {
				return err
			}
			if round >= warmups {
				all[i].add(run...)
				all[2+i].add(stop...)
			}
		}
	}
	for _, line := range all {
		for _, p := range line.phases {
			low, high := quartiles(p.took)
			t.addPlain(line.name+": "+p.name, fmt.Sprintf("%.1f ms (%.1f to %.1f)", median(p.took), low, high))
		}
	}
	if o.plot == "" {
		return nil
	}
	return os.WriteFile(o.plot, plotLines(all), 0o644)
}

func phaseLines() []*timeline {
	return []*timeline{
		newTimeline("start, containerd alone", phaseBefore, phaseProcesses, phaseAfter),
		newTimeline("start, crinetd", phaseBefore, phaseProcesses, phaseADD, phaseAfter),
		newTimeline("stop, containerd alone", phaseBefore, phaseProcesses, phaseAfter),
		newTimeline("stop, crinetd", phaseBefore, phaseProcesses, phaseAfter),
	}
}

// phasesOf runs and stops one pod and takes both calls apart.
func (s *sides) phasesOf(ctx context.Context, w network, watch *execWatch, name string, side int) (run, stop []time.Duration, err error) {
	by := s.ways(w)[side]
	call := func(do func() error) ([]time.Duration, error) {
		begun := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		ended := time.Now()
		first, last, err := watch.between(begun, ended)
		if err != nil {
			return nil, err
		}
		return []time.Duration{first.Sub(begun), last.Sub(first), ended.Sub(last)}, nil
	}
	var id string
	run, err = call(func() (err error) {
		id, _, err = runPod(ctx, s.node, by.client, s.node.PodConfig(name), by.handler)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if side == through {
		adds, err := s.adds(ctx)
		if err != nil {
			return nil, nil, err
		}
		if len(adds) != 1 {
			return nil, nil, fmt.Errorf("crinetctl shows %d pods, want 1", len(adds))
		}
		add := time.Duration(adds[0] * float64(time.Millisecond))
		run = slices.Insert(run, 2, add)
		run[1] -= add
	}
	stop, err = call(func() error {
		_, err := stopPod(ctx, by.client, id)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return run, stop, removePod(ctx, by.client, id)
}

// calledPlugins are those that containerd calls itself.
var calledPlugins = []string{"loopback", "bridge", "crinet"}

// ownPlugins puts copies in the place of the node's links to plugins: other nodes run
// the same files.
func ownPlugins(n *node.Node) error {
	for _, plugin := range calledPlugins[:2] {
		path := n.Path(node.BinDir + "/" + plugin)
		program, err := os.ReadFile(n.Kit().Tool("cni/" + plugin))
		if err == nil {
			err = os.Remove(path)
		}
		if err == nil {
			err = os.WriteFile(path, program, 0o755)
		}
		if err != nil {
			return fmt.Errorf("copy plugin %s: %w", plugin, err)
		}
	}
	return nil
}

// execWatch notes when the plugins are executed and when they end.
type execWatch struct {
	fanotify *os.File
	ran      chan process
	done     chan error
}

// process is one run of a plugin.
type process struct{ began, ended time.Time }

// watchExecs watches the plugins of the node (fanotify(7), FAN_OPEN_EXEC).
func watchExecs(n *node.Node) (*execWatch, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("watch the exec of plugins: %w", err)
	}
	w := &execWatch{fanotify: os.NewFile(uintptr(fd), "fanotify"), ran: make(chan process, 64), done: make(chan error, 1)}
	for _, plugin := range calledPlugins {
		path := n.Path(node.BinDir + "/" + plugin)
		if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_EXEC, unix.AT_FDCWD, path); err != nil {
			return nil, errors.Join(fmt.Errorf("watch the exec of plugin %s: %w", plugin, err), w.fanotify.Close())
		}
	}
	go func() { w.done <- w.read() }()
	return w, nil
}

func (w *execWatch) close() error {
	err := w.fanotify.Close()
	if readErr := <-w.done; !errors.Is(readErr, os.ErrClosed) {
		return errors.Join(err, readErr)
	}
	return err
}

// read receives events until the watch is closed (struct fanotify_event_metadata).
func (w *execWatch) read() error {
	const metadata = 24
	buf := make([]byte, 4096)
	for {
		n, err := w.fanotify.Read(buf)
		if err != nil {
			return err
		}
		now := time.Now()
		for event := buf[:n]; len(event) >= metadata; event = event[binary.NativeEndian.Uint32(event):] {
			if fd := int32(binary.NativeEndian.Uint32(event[16:])); fd >= 0 {
				_ = unix.Close(int(fd)) // of the program, which we do not read
			}
			go w.await(int(binary.NativeEndian.Uint32(event[20:])), now)
		}
	}
}

// await waits for the end of a plugin.
func (w *execWatch) await(pid int, began time.Time) {
	p := process{began: began}
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		_ = unix.Close(fd)
	}
	p.ended = time.Now() // a plugin that has been waited for already ended just before
	w.ran <- p
}

// settleTime is how long notes of plugins that have ended may take to come.
const settleTime = 50 * time.Millisecond

// between returns when the first plugin of a call began and the last ended.
func (w *execWatch) between(begun, ended time.Time) (first, last time.Time, err error) {
	for {
		select {
		case p := <-w.ran:
			if p.began.Before(begun) {
				continue // of a call before
			}
			if first.IsZero() || p.began.Before(first) {
				first = p.began
			}
			if p.ended.After(last) {
				last = p.ended
			}
		case <-time.After(settleTime):
			if first.IsZero() {
				return first, last, errors.New("no plugin was executed")
			}
			if last.After(ended) { // noted late
				last = ended
			}
			return first, last, nil
		}
	}
}
