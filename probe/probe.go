package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/crinet-project/crinet/cni/pluginexec"
)

const (
	defaultTimeout  = 5 * time.Second
	defaultParallel = 4
	// startRetry is how long a start is tried again at once while the file is
	// being written.
	startRetry = 100 * time.Millisecond
	maxAnswer  = 64 << 10
)

// Config tunes a Prober; the zero value means the defaults.
type Config struct {
	// Timeout is how long a file may take to answer; 0 means 5 s.
	Timeout time.Duration
	// Parallel is how many files are asked at a time; 0 means 4.
	Parallel int
	// About are the names of plugins that are asked for [Plugin.About] as well.
	About []string
}

// runner executes a binary; [pluginexec.Exec] is one.
type runner interface {
	Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error)
}

// Prober probes a list of bin dirs. It is safe for concurrent use.
type Prober struct {
	dirs     []string
	about    []string      // Config.About
	timeout  time.Duration // the limit of exec
	exec     runner
	places   chan struct{} // one for each file that is being asked
	answered chan struct{}

	mu        sync.Mutex           // guards questions and what they point to
	questions map[string]*question // path of a file -> what is known of it
	asking    sync.WaitGroup
}

// New returns a Prober for the directories, which are searched in order.
func New(dirs []string, cfg Config) *Prober {
	if cfg.Timeout <= 0 {
		cfg.Timeout = defaultTimeout
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = defaultParallel
	}
	return &Prober{
		dirs:    slices.Clone(dirs),
		about:   slices.Clone(cfg.About),
		timeout: cfg.Timeout,
		exec: pluginexec.New(pluginexec.Config{
			Timeout: cfg.Timeout, MaxStdout: maxAnswer, MaxStderr: 4 << 10, Retry: startRetry,
		}),
		places:    make(chan struct{}, cfg.Parallel),
		answered:  make(chan struct{}, 1),
		questions: map[string]*question{},
	}
}

// Dirs returns the directories that are probed.
func (p *Prober) Dirs() []string { return slices.Clone(p.dirs) }

// Answered receives a value after an answer came for which no Probe has waited:
// the next Probe returns it.
func (p *Prober) Answered() <-chan struct{} { return p.answered }

// Probe searches the bin dirs and asks the plugins of the given types that are
// new or have changed for their versions. It waits until each of these has
// answered once, at most for patience; questions go on after that until they are
// answered or Stop is called. What is wrong with a directory or a file is part
// of the result. The error is ctx's, if ctx ended meanwhile.
func (p *Prober) Probe(ctx context.Context, types []string, patience time.Duration) (*Plugins, error) {
	found := search(p.dirs, types)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	late := false
	for _, done := range p.update(found.ask) {
		if late {
			break
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
			late = true
		case <-done:
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("probing the plugins in %s: %w", strings.Join(p.dirs, ", "), err)
	}
	select {
	case <-p.answered: // that answer is in what follows
	default:
	}
	return p.plugins(found), nil
}

// Stop ends all questions and waits for them. The next Probe asks again what was
// not answered.
func (p *Prober) Stop() {
	p.mu.Lock()
	for _, q := range p.questions {
		q.cancel()
	}
	p.mu.Unlock()
	p.asking.Wait()
}

// plugins fills the answers into what was found.
func (p *Prober) plugins(found *found) *Plugins {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range found.set.all {
		pl := &found.set.all[i]
		q := p.questions[pl.Path]
		switch {
		case pl.Name == ShimType:
			pl.Reason = "is crinet's own shim, which is no network's plugin"
		case q == nil || found.ask[pl.Path].IsZero():
			pl.Reason = "not asked: no configuration names it"
		default:
			pl.Asked = true
			q.fill(pl)
		}
	}
	return found.set
}
