package headroom

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// near is how few addresses, by the last count, have a pod's admission look at the
// folder: more than pods can take between two counts of a range of that size.
const near = 64

// listing are the addresses that a folder held when it was listed.
type listing struct {
	addresses []netip.Addr
	changed   time.Time // the folder's mtime then
	stable    bool      // that was old enough by then to tell a later change
}

// Refusal returns why the next pod would get no address, and of which network; nil if it
// would. The error names the range, what is used of it, and the mend. Unlike [Counter.Exhausted] it is
// sure of it: where the last count leaves few addresses, the selected network is asked
// for again and the folder is listed now, unless it has not changed since. busy says
// whether pods are being removed, whose addresses become free: nobody is refused then.
// Whatever cannot be told refuses nobody.
func (c *Counter) Refusal(busy func() bool) (network string, err error) {
	if !slices.ContainsFunc(sets(c.Ranges()), func(s set) bool { return s.free < near }) || busy() {
		return "", nil
	}
	ranges := c.now()
	for _, s := range sets(ranges) {
		if s.free == 0 && !busy() { // a removal may have begun beside the look
			return s.network, errors.New(s.refusal())
		}
	}
	return "", nil
}

// now counts the ranges of the selected network; none if that cannot be done.
func (c *Counter) now() []Range {
	next, err := c.cfg.Next()
	if err != nil {
		return nil
	}
	ranges, err := rangesOf(next)
	if err != nil {
		return nil
	}
	for i := range ranges {
		r := &ranges[i]
		taken, err := c.list(r.Dir)
		if err != nil {
			return nil
		}
		for _, a := range taken {
			if r.contains(a) {
				r.Used++
			}
		}
		r.Selected, r.Free, r.Leaked = true, r.Usable()-min(r.Usable(), r.Used), c.leakedOf(r)
	}
	return ranges
}

// leakedOf is how many addresses of a range were leaked at the last count.
func (c *Counter) leakedOf(r *Range) uint64 {
	for _, counted := range c.Ranges() {
		if counted.Dir == r.Dir && counted.Range == r.Range {
			return counted.Leaked
		}
	}
	return 0
}

// refusal says why a pod is refused, and what helps. It begins as host-local's own
// error does.
func (s *set) refusal() string {
	text := fmt.Sprintf("no IP addresses available in range set: network %q has given out all %d of %s", s.network, s.usable, strings.Join(s.names, ", "))
	if s.leaked > 0 {
		return text + fmt.Sprintf(", %d of them leaked: crinetctl status names their files, which can be removed", s.leaked)
	}
	return text + ": remove pods, run fewer on this node, or give the network a larger range"
}

// list returns the addresses that have a file in a folder. A folder that is not there
// has none.
func (c *Counter) list(dir string) ([]netip.Addr, error) {
	c.listing.Lock()
	defer c.listing.Unlock()
	info, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		delete(c.listed, dir)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if l := c.listed[dir]; l != nil && l.stable && l.changed.Equal(info.ModTime()) {
		return l.addresses, nil
	}
	l := &listing{changed: info.ModTime(), stable: time.Since(info.ModTime()) > settled}
	if l.addresses, err = listAddresses(dir); err != nil {
		return nil, err
	}
	if c.listed == nil || len(c.listed) > maxListed {
		c.listed = make(map[string]*listing)
	}
	c.listed[dir] = l
	return l.addresses, nil
}

// maxListed bounds the folders that are kept: a network that changes leaves its own.
const maxListed = 16

// listAddresses lists a folder's addresses. One with more files than are looked at is
// an error.
func listAddresses(path string) (all []netip.Addr, err error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // it was only read
	for seen := 0; seen < maxFiles; {
		names, err := dir.Readdirnames(chunk)
		for _, name := range names {
			if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
				all = append(all, a.Unmap())
			}
		}
		seen += len(names)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s has more than %d files", path, maxFiles)
}
