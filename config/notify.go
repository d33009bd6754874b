package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/fsnotify/fsnotify"
)

// notifier is the watching part of an fsnotify.Watcher.
type notifier interface {
	Add(path string) error
	Close() error
}

// notifications are the channels of a notifier.
type notifications struct {
	notifier
	events <-chan fsnotify.Event
	errs   <-chan error
}

// newNotifications makes an inotify instance.
func newNotifications() (*notifications, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("inotify cannot be used (see fs.inotify.max_user_instances): %w", err)
	}
	return &notifications{notifier: w, events: w.Events, errs: w.Errors}, nil
}

// guard keeps the watches that a plan asks for. A plan that asks for others
// gets a new inotify instance: what the old one knows of paths may be out of
// date, and events that were in its queue are made up for by the scan that
// follows. It is used by one goroutine.
type guard struct {
	open    func() (*notifications, error)
	make    func() plan
	current *notifications // nil while there is none
	armed   plan
	lost    bool // a watched path was removed, renamed or made anew
	rearms  uint64
	closing sync.WaitGroup // closing an instance waits for the kernel
}

// update makes the watches those of the plan of this moment. With an error it
// watches less than it should, and should be called again.
func (g *guard) update() error {
	var err error
	// What is made between planning and watching is in the next plan.
	for range 4 {
		p := g.make()
		if g.current != nil && !g.lost && err == nil && g.armed.covers(p) {
			g.armed = p // it may want less
			if len(p) >= maxWatches {
				return fmt.Errorf("there are more than %d directories to watch", maxWatches)
			}
			return nil
		}
		if err = g.arm(p); err != nil {
			return err
		}
	}
	return errors.New("the directories change faster than they can be watched")
}

// arm exchanges the watches for those of p. If no new ones can be had, the old
// ones stay.
func (g *guard) arm(p plan) error {
	next, err := g.open()
	if err != nil {
		return err
	}
	var failed error
	armed := maps.Clone(p)
	for path := range p {
		err := next.Add(path)
		if err == nil {
			continue
		}
		delete(armed, path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // the next plan shows what is there instead
		case failed == nil && errors.Is(err, syscall.ENOSPC):
			failed = fmt.Errorf("%s cannot be watched (see fs.inotify.max_user_watches): %w", path, err)
		case failed == nil:
			failed = fmt.Errorf("%s cannot be watched: %w", path, err)
		}
	}
	g.stop()
	g.current, g.armed, g.lost = next, armed, false
	g.rearms++
	return failed
}

// stop closes the instance in the background.
func (g *guard) stop() {
	if old := g.current; old != nil {
		g.closing.Go(func() { _ = old.Close() }) // nothing hangs on its result
	}
	g.current = nil
}

// events and errs are nil while nothing is watched.
func (g *guard) events() <-chan fsnotify.Event {
	if g.current == nil {
		return nil
	}
	return g.current.events
}

func (g *guard) errs() <-chan error {
	if g.current == nil {
		return nil
	}
	return g.current.errs
}

// match says what an event means.
func (g *guard) match(ev fsnotify.Event) interest {
	path := filepath.Clean(ev.Name)
	in, watched := g.armed.match(path)
	if watched && ev.Has(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) {
		g.lost = true
		in |= inConf | inBin
	}
	return in
}
