package headroom

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/internal/backoff"
)

const (
	// look is how often the folders are looked at, recount how often they are
	// counted when nothing has changed.
	look    = 2 * time.Second
	recount = 30 * time.Second
	// share is the part of the time that counting may take.
	share = 50
	// grace is how old a file of nobody must be to count as leaked: longer than the
	// time between host-local's ADD and the runtime's word that it has the sandbox.
	grace = 5 * time.Minute
	// askTimeout bounds the question for the runtime's sandboxes.
	askTimeout = 5 * time.Second
	// maxLeaks is how many leaked addresses of a range are named.
	maxLeaks = 10
)

// Config is what a Counter asks. All fields but Grace are required.
type Config struct {
	Log *slog.Logger
	// Next returns the attachment that the next pod would get, or why it gets none.
	Next func() (*cni.Attachment, error)
	// Attachments returns the attachments that the journal holds.
	Attachments func() ([]*cni.Attachment, error)
	// Sandboxes returns the ids of the runtime's sandboxes. It is asked only while
	// there are addresses that the journal does not know.
	Sandboxes func(context.Context) (map[string]bool, error)
	// Grace is how old a file of nobody's must be to count as leaked; five minutes
	// if it is 0.
	Grace time.Duration
}

// Counter counts the addresses of the selected network and of the networks of pods
// that run. Its methods are safe for concurrent use.
type Counter struct {
	cfg    Config
	ranges atomic.Pointer[[]Range]

	listing sync.Mutex          // guards what follows
	listed  map[string]*listing // by folder: what admission saw

	counting sync.Mutex                 // guards what follows
	stores   map[string]*store          // by folder
	parsed   map[string][]Range         // by what an attachment is of
	leaked   map[string]map[string]bool // by folder: the containers that were nobody's at the last look
	last     map[string]level           // by network: what was logged last
}

// New returns a Counter, which has counted nothing yet.
func New(c Config) *Counter {
	if c.Grace == 0 {
		c.Grace = grace
	}
	n := &Counter{cfg: c, stores: make(map[string]*store), last: make(map[string]level)}
	n.ranges.Store(&[]Range{})
	return n
}

// Ranges returns the ranges as they were counted last, those of the selected network
// first. They must not be written to.
func (c *Counter) Ranges() []Range { return *c.ranges.Load() }

// Run counts until ctx ends.
func (c *Counter) Run(ctx context.Context) {
	var counted time.Time
	var network string
	for wait := time.Duration(0); backoff.Sleep(ctx, wait); {
		wait = look
		now := c.selected()
		if now == network && time.Since(counted) < recount && !c.changed() {
			continue
		}
		network = now
		start := time.Now()
		c.Count(ctx)
		counted = time.Now()
		wait = max(look, share*counted.Sub(start))
	}
}

// selected tells one selected network from another.
func (c *Counter) selected() string {
	next, err := c.cfg.Next()
	if err != nil {
		return ""
	}
	return identity(next)
}

// identity tells attachments with the same ranges from others.
func identity(a *cni.Attachment) string {
	var b strings.Builder
	b.WriteString(a.Network)
	b.WriteByte(0)
	b.Write(a.ConfList)
	b.Write(a.CapabilityArgs["ipRanges"])
	for _, chosen := range a.Builtin {
		b.Write(chosen.Delegate)
	}
	return b.String()
}

// changed says whether a folder has changed since it was counted.
func (c *Counter) changed() bool {
	c.counting.Lock()
	defer c.counting.Unlock()
	for _, s := range c.stores {
		if s.stale() {
			return true
		}
	}
	return false
}

// Count counts now.
func (c *Counter) Count(ctx context.Context) {
	c.counting.Lock()
	defer c.counting.Unlock()
	attachments, err := c.cfg.Attachments()
	if err != nil {
		c.cfg.Log.Warn("addresses are counted without the journal, and none counts as leaked", "err", err)
	}
	all := c.find(attachments)
	known := make(map[string]bool, len(attachments))
	for _, a := range attachments {
		known[a.ContainerID] = true
	}
	now := time.Now()
	for dir, s := range c.stores {
		if !slices.ContainsFunc(all, func(r Range) bool { return r.Dir == dir }) {
			delete(c.stores, dir)
		} else if s.stale() {
			s.read(ctx, now)
		}
	}
	c.leaked = c.nobodys(ctx, known, err == nil, now)
	for i := range all {
		c.count(&all[i])
	}
	c.ranges.Store(&all)
	c.tell(all)
}

// find returns the ranges of the selected network and those of pods that run.
func (c *Counter) find(attachments []*cni.Attachment) []Range {
	parsed := make(map[string][]Range)
	var all []Range
	add := func(a *cni.Attachment, selected bool) {
		id := identity(a)
		if _, done := parsed[id]; done {
			return
		}
		found, kept := c.parsed[id]
		if !kept || readsFile(a) {
			var err error
			if found, err = rangesOf(a); err != nil {
				c.cfg.Log.Debug("a network's addresses are not counted", "network", a.Network, "err", err)
			}
		}
		parsed[id] = found
		for _, r := range found {
			same := func(o Range) bool { return o.Network == r.Network && o.Range == r.Range }
			if !slices.ContainsFunc(all, same) {
				r.Selected = selected
				all = append(all, r)
			}
		}
	}
	if next, err := c.cfg.Next(); err == nil {
		add(next, true)
	}
	for _, a := range attachments {
		add(a, false)
	}
	c.parsed = parsed
	for _, r := range all {
		if c.stores[r.Dir] == nil {
			c.stores[r.Dir] = &store{dir: r.Dir}
		}
	}
	return all
}

// readsFile says whether the ranges of an attachment are also those of a file that may
// change: flanneld's, where flannel's binary reads it.
func readsFile(a *cni.Attachment) bool {
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if json.Unmarshal(a.ConfList, &list) != nil {
		return false
	}
	for _, p := range list.Plugins {
		if p.Type == "flannel" {
			return !slices.ContainsFunc(a.Builtin, func(b cni.Builtin) bool { return b.Type == p.Type })
		}
	}
	return false
}

// nobodys returns the containers, by folder, that have an address for longer than the
// grace and that neither the journal nor the runtime knows. A runtime that does not
// answer leaves it at what it said before.
func (c *Counter) nobodys(ctx context.Context, known map[string]bool, sure bool, now time.Time) map[string]map[string]bool {
	all := make(map[string]map[string]bool)
	if !sure {
		return all
	}
	var sandboxes map[string]bool
	for dir, s := range c.stores {
		for _, f := range s.files {
			if f.holder == "" || known[f.holder] || now.Sub(f.mtime) < c.cfg.Grace {
				continue
			}
			if sandboxes == nil {
				ctx, cancel := context.WithTimeout(ctx, askTimeout)
				listed, err := c.cfg.Sandboxes(ctx)
				cancel()
				if err != nil {
					return c.leaked
				}
				sandboxes = listed
				if sandboxes == nil {
					sandboxes = make(map[string]bool)
				}
			}
			if !sandboxes[f.holder] {
				if all[dir] == nil {
					all[dir] = make(map[string]bool)
				}
				all[dir][f.holder] = true
			}
		}
	}
	return all
}

// count counts one range.
func (c *Counter) count(r *Range) {
	s := c.stores[r.Dir]
	r.Used, r.Leaked, r.Leaks, r.Problem = 0, 0, nil, s.problem()
	for a, f := range s.files {
		switch {
		case !r.contains(a):
		case c.leaked[r.Dir][f.holder]:
			r.Leaked++
			r.Leaks = append(r.Leaks, Leak{Address: a, Container: f.holder, File: r.Dir + "/" + a.String()})
		default:
			r.Used++
		}
	}
	slices.SortFunc(r.Leaks, func(a, b Leak) int { return a.Address.Compare(b.Address) })
	r.Leaks = slices.Clip(r.Leaks[:min(len(r.Leaks), maxLeaks)])
	r.Free = r.Usable() - min(r.Usable(), r.Used+r.Leaked)
}
