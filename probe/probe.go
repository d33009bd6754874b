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
	// patience is how long a file that is asked holds up those behind it.
	// After that it is asked on, but another one gets its place.
	patience = 250 * time.Millisecond
	// busyRetry is how long a start is tried while the file is being written.
	// Busy files are taken up again by the next Probe.
	busyRetry = 100 * time.Millisecond
	maxAnswer = 64 << 10
)

// Config tunes a Prober; the zero value means the defaults.
type Config struct {
	// Timeout is how long a file may take to answer; 0 means 5 s.
	Timeout time.Duration
	// Parallel is how many files are asked at a time; 0 means 4.
	Parallel int
}

// runner executes a binary; [pluginexec.Exec] is one.
type runner interface {
	Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error)
}

// Prober probes a list of bin dirs. It is safe for concurrent use; probes run
// one after another.
type Prober struct {
	dirs     []string
	parallel int
	timeout  time.Duration // the limit of exec
	exec     runner

	mu    sync.Mutex // one probe at a time; guards cache
	cache map[identity]answer
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
		dirs:     slices.Clone(dirs),
		parallel: cfg.Parallel,
		timeout:  cfg.Timeout,
		exec: pluginexec.New(pluginexec.Config{
			Timeout: cfg.Timeout, MaxStdout: maxAnswer, MaxStderr: 4 << 10, Retry: busyRetry,
		}),
		cache: map[identity]answer{},
	}
}

// Dirs returns the directories that are probed.
func (p *Prober) Dirs() []string { return slices.Clone(p.dirs) }

// Probe looks through the bin dirs and asks every executable that is new or
// has changed for its versions. What it finds wrong, with a directory or a
// file, is part of the result. The error is ctx's, when ctx ended before all
// were asked.
func (p *Prober) Probe(ctx context.Context) (*Plugins, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := &Plugins{others: map[string]Plugin{}}
	chosen := map[string]file{}
	shadowed := map[string][]string{}
	for _, dir := range p.dirs {
		files, reason := listDir(dir)
		set.dirs = append(set.dirs, Dir{Path: dir, Reason: reason})
		for _, f := range files {
			_, have := chosen[f.name]
			switch {
			case have && f.executable():
				shadowed[f.name] = append(shadowed[f.name], f.path)
			case f.executable():
				chosen[f.name] = f
			case set.others[f.name].Path == "":
				set.others[f.name] = Plugin{Name: f.name, Path: f.path,
					Reason: fmt.Sprintf("is not executable (mode %04o)", f.mode.Perm())}
			}
		}
	}
	answers, err := p.askAll(ctx, chosen)
	if err != nil {
		return nil, fmt.Errorf("probing the plugins in %s: %w", strings.Join(p.dirs, ", "), err)
	}
	for name, f := range chosen {
		a := answers[f.id]
		if name == ShimType {
			a = answer{reason: "is crinet's own shim, which is no network's plugin"}
		}
		set.all = append(set.all, Plugin{Name: name, Path: f.path, Versions: a.versions,
			Reason: a.reason, Busy: a.busy, Shadowed: shadowed[name]})
	}
	slices.SortFunc(set.all, func(a, b Plugin) int { return byName(a, b.Name) })
	return set, nil
}

// askAll returns the answers of files, the known ones from the cache, and
// makes them the cache. Names that are links to one file are one question.
func (p *Prober) askAll(ctx context.Context, files map[string]file) (map[identity]answer, error) {
	answers := map[identity]answer{}
	todo := map[identity]file{}
	for name, f := range files {
		if name == ShimType {
			continue
		}
		if a, known := p.cache[f.id]; known {
			answers[f.id] = a
		} else if other, have := todo[f.id]; !have || f.path < other.path {
			todo[f.id] = f
		}
	}
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		places = make(chan struct{}, p.parallel)
	)
	for id, f := range todo {
		select {
		case <-ctx.Done():
		case places <- struct{}{}:
			wg.Go(func() {
				leave := sync.OnceFunc(func() { <-places })
				defer leave()
				defer time.AfterFunc(patience, leave).Stop()
				a := p.ask(ctx, f)
				mu.Lock()
				defer mu.Unlock()
				answers[id] = a
			})
		}
	}
	wg.Wait()
	return answers, p.remember(ctx, answers)
}

// remember makes answers the cache, without the busy ones. After the end of
// ctx they are not to be trusted.
func (p *Prober) remember(ctx context.Context, answers map[identity]answer) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	clear(p.cache)
	for id, a := range answers {
		if !a.busy {
			p.cache[id] = a
		}
	}
	return nil
}
