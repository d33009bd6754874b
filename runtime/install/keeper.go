package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/upstream"
)

const (
	// keepInterval is how often Keeper and Mirror look at their files. A look of
	// the Keeper costs a few calls of stat.
	keepInterval = time.Second
	// settle is the shortest time between two looks of the Keeper, so that
	// somebody who removes the configuration whenever it appears does not make
	// crinetd busy.
	settle = 100 * time.Millisecond
)

// Keeper keeps crinet's configuration and shim where the runtime looks, and
// knows whether the runtime uses them. Its methods may be called from many
// goroutines; those that tell something (Ready, Notice, Serves, Unserved) wait
// for no file.
type Keeper struct {
	config Config
	log    *slog.Logger
	now    func() time.Time
	view   atomic.Pointer[view] // what Keep saw last; nil before

	mu      sync.Mutex        // guards what follows: one Keep at a time
	places  map[string]*place // conf dir -> what is installed there
	failure failureLog
	// oldBinDirs are those that the shim must still be taken out of.
	oldBinDirs []string
}

// view is what one Keep saw. It is not changed afterwards.
type view struct {
	trouble  error             // why not all files are in place; nil if they are
	unserved map[string]string // handler -> its own conf dir, which crinet does not serve
	main     *place            // a copy of the place where most handlers look; nil if unknown
	loopback bool              // the plugin loopback is in one of the runtime's bin dirs
}

// NewKeeper returns a keeper. Nothing is installed before Keep or Run.
func NewKeeper(c Config) *Keeper {
	k := &Keeper{config: c, log: c.Log, now: time.Now, places: make(map[string]*place)}
	k.view.Store(&view{})
	return k
}

// Run keeps the files until ctx ends: it looks every second, and as soon as
// somebody changes a conf dir.
func (k *Keeper) Run(ctx context.Context) {
	var events <-chan fsnotify.Event
	var failures <-chan error
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		k.log.Warn("changes of the runtime's conf dir are seen only once a second", "err", err)
	} else {
		defer notify.Close()
		events, failures = notify.Events, notify.Errors
	}
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for {
		k.Keep()
		if notify != nil {
			k.watch(notify)
		}
		if !backoff.Sleep(ctx, settle) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-events:
		case err := <-failures:
			k.log.Debug("changes of the runtime's conf dir may have been missed; crinetd looks", "err", err)
		}
	}
}

// watch has Run look as soon as something happens in the conf dirs.
func (k *Keeper) watch(notify *fsnotify.Watcher) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for dir := range k.places {
		if !slices.Contains(notify.WatchList(), dir) {
			_ = notify.Add(dir) // a second later it may work; the look comes all the same
		}
	}
}

// Keep makes the files stand where the runtime looks, as far as that is known. A
// failure is logged when it begins or changes, is what Ready returns, and is
// tried again with the next call.
func (k *Keeper) Keep() {
	facts := k.config.Runtime.Last().Facts
	dirs, binDir, unserved := k.config.where(facts)
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := &view{unserved: unserved, loopback: facts != nil && hasLoopback(facts.BinDirs)}
	if len(dirs) > 0 { // otherwise the runtime has not answered yet
		seen.trouble = k.keepAll(dirs, binDir, facts)
		main := *k.places[dirs[0]]
		seen.main = &main
	}
	k.view.Store(seen)
	k.failure.tell(k.log, "the runtime may not find crinet; crinetd tries again", seen.trouble)
	if k.Ready() != nil {
		k.config.Runtime.Wake() // it may have loaded the configuration by now
	}
}

// keepAll keeps the files of all conf dirs, and leaves those that the runtime
// does not use any more. The caller holds the lock.
func (k *Keeper) keepAll(dirs []string, binDir string, facts *upstream.Facts) error {
	var errs []error
	for _, dir := range dirs {
		p := k.places[dir]
		if p == nil || p.installer.BinDir != binDir {
			if p != nil {
				k.oldBinDirs = append(k.oldBinDirs, p.installer.BinDir)
			}
			p = &place{installer: Installer{ConfDir: dir, BinDir: binDir, Shim: k.config.Shim, Socket: k.config.Socket}}
			p.installer.removeUnfinished()
			k.places[dir] = p
		}
		errs = append(errs, p.keep(facts, k.log))
	}
	for dir, p := range k.places {
		if !slices.Contains(dirs, dir) {
			k.oldBinDirs = append(k.oldBinDirs, p.installer.BinDir)
			errs = append(errs, k.leave(dir))
		}
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, k.leaveBinDirs(binDir))
	}
	return errors.Join(errs...)
}

// leave takes crinet's configuration out of a conf dir that the runtime does not
// use any more. The shim may serve others. The caller holds the lock.
func (k *Keeper) leave(dir string) error {
	if err := os.Remove(filepath.Join(dir, ConfListName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the runtime uses another conf dir now, and crinet's configuration cannot be removed from the old one: %w", err)
	}
	k.log.Info("the runtime uses another conf dir now: crinet's configuration is removed from the old one", "dir", dir)
	delete(k.places, dir)
	return nil
}

// leaveBinDirs takes the shim out of bin dirs in which the runtime does not look
// first any more, once it stands where it does. The caller holds the lock.
func (k *Keeper) leaveBinDirs(now string) error {
	for len(k.oldBinDirs) > 0 {
		if dir := k.oldBinDirs[0]; !sameDir(dir, now) {
			if err := os.Remove(filepath.Join(dir, PluginName)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("the runtime uses another bin dir now, and the crinet plugin cannot be removed from the old one: %w", err)
			}
			k.log.Info("the runtime uses another bin dir now: the crinet plugin is removed from the old one", "dir", dir)
		}
		k.oldBinDirs = k.oldBinDirs[1:]
	}
	return nil
}

// failureLog logs a failure when it begins or changes.
type failureLog struct{ told string }

func (f *failureLog) tell(log *slog.Logger, message string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != f.told && err != nil {
		log.Error(message, "err", err)
	}
	f.told = text
}
