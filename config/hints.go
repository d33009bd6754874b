package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/fsnotify/fsnotify"

	"github.com/crinet-project/crinet/internal/dirs"
)

// maxWatches is how many directories are watched. Changes in others are found by
// their fingerprint.
const maxWatches = 64

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

// hints tell of most changes of some directories as they happen. Nothing depends
// on them but the time until a change is seen: events get lost, and a mount, a
// renamed parent or a symlink's target gives none. hints are used by one
// goroutine.
type hints struct {
	open func() (*notifications, error)
	// C receives a value after something happened.
	C chan struct{}

	armed  *armed // nil while nothing is watched
	err    error  // why less is watched than was asked for
	rearms uint64
	ending sync.WaitGroup // of instances: closing one waits for the kernel
}

// armed is an inotify instance and what it watches.
type armed struct {
	*notifications
	watched map[string]dirs.ID // path -> device and inode
	lost    atomic.Bool        // a watch ended, or the instance
}

func newHints(open func() (*notifications, error)) *hints {
	return &hints{open: open, C: make(chan struct{}, 1)}
}

// update watches the directories that list returns, as they are now. Any
// difference from what is watched makes a new inotify instance: an old one may
// watch a directory by a path that it no longer has. After an error less is
// watched than was asked for; the next update tries again.
func (h *hints) update(list func() []string) error {
	for range 3 { // what is made between list and arm is in the next list
		want := map[string]dirs.ID{}
		for _, path := range list() {
			if id := dirs.Stat(path); id.IsDir() && len(want) < maxWatches {
				want[path] = dirs.ID{Dev: id.Dev, Ino: id.Ino}
			}
		}
		if a := h.armed; a != nil && !a.lost.Load() && h.err == nil && maps.Equal(a.watched, want) {
			return nil
		}
		if h.err = h.arm(want); h.err != nil {
			return h.err
		}
	}
	return nil
}

// arm replaces the inotify instance. If there is no new one, the old one stays.
func (h *hints) arm(want map[string]dirs.ID) error {
	n, err := h.open()
	if err != nil {
		return err
	}
	a := &armed{notifications: n, watched: want}
	var failed error
	for path := range want {
		switch err := n.Add(path); {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			delete(want, path)
		case errors.Is(err, syscall.ENOSPC):
			failed = fmt.Errorf("%s cannot be watched (see fs.inotify.max_user_watches): %w", path, err)
		default:
			failed = fmt.Errorf("%s cannot be watched: %w", path, err)
		}
	}
	h.stop()
	h.armed = a
	h.rearms++
	h.ending.Go(func() { a.forward(h.C) })
	return failed
}

// forward tells c of everything that happens until the instance is closed. It
// always receives: fsnotify holds a lock while it sends an error.
func (a *armed) forward(c chan<- struct{}) {
	events, errs := a.events, a.errs
	for events != nil || errs != nil {
		select {
		case ev, ok := <-events:
			if !ok {
				events = nil
				a.lost.Store(true)
			}
			_, watched := a.watched[filepath.Clean(ev.Name)]
			if watched && ev.Has(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) {
				a.lost.Store(true)
			}
		case _, ok := <-errs: // events that were lost, or a broken instance
			if !ok {
				errs = nil
			}
			a.lost.Store(true)
		}
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// stop closes the instance in the background.
func (h *hints) stop() {
	if a := h.armed; a != nil {
		h.ending.Go(func() { _ = a.Close() }) // nothing depends on its result
	}
	h.armed = nil
}

// end closes the instance and waits.
func (h *hints) end() {
	h.stop()
	h.ending.Wait()
}
