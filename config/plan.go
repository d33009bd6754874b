package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// maxWatches is how many directories and files are watched; what is beyond
	// is left to the poll.
	maxWatches = 1024
	// maxLinks is how many symlinks a path may lead through, as in the kernel.
	maxLinks = 40
)

// interest says what a change of a file means.
type interest uint8

const (
	inConf interest = 1 << iota // scan the conf dir
	inBin                       // probe the bin dirs
)

// target is a directory or file to be watched.
type target struct {
	dev, ino uint64
	all      interest            // any change in it matters
	names    map[string]interest // changes of these names matter
}

// plan is what has to be watched, by path without symlinks: the directories,
// and every directory on the way to them and to what symlinks in them point
// to, so that whatever is made, removed or exchanged anywhere is seen.
type plan map[string]target

// newPlan looks at how the directories are made up at the moment.
func newPlan(confDir string, binDirs []string) plan {
	p := plan{}
	p.tree("/", confDir, inConf, 1)
	for _, dir := range binDirs {
		p.tree("/", dir, inBin, 0)
	}
	return p
}

// tree plans the directory at path, relative to dir, with folders in it to the
// given depth.
func (p plan) tree(dir, path string, in interest, depth int) {
	dir, ok := p.walk(dir, path, in)
	if !ok {
		return
	}
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return // the walk has planned what tells of a change
	}
	p.add(dir, "", in)
	entries, err := list(dir)
	if err != nil {
		return // reported by the scan or the probe
	}
	for _, e := range entries {
		switch {
		case depth > 0 && (e.IsDir() || e.Type()&fs.ModeSymlink != 0):
			p.tree(dir, e.Name(), in, depth-1)
		case e.Type()&fs.ModeSymlink != 0:
			p.walk(dir, e.Name(), in)
		case in == inConf && e.Type().IsRegular():
			p.linked(filepath.Join(dir, e.Name()), in)
		}
	}
}

// linked plans a file that has other names: what is written to it by these is
// not seen in its directory.
func (p plan) linked(path string, in interest) {
	info, err := os.Lstat(path)
	if err != nil {
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		p.add(path, "", in)
	}
}

// walk follows path from dir, which has no symlinks, and plans every step. It
// returns the path without symlinks, and whether it leads anywhere.
func (p plan) walk(dir, path string, in interest) (string, bool) {
	todo := strings.Split(path, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			dir = filepath.Dir(dir)
			continue
		}
		p.add(dir, name, in)
		next := filepath.Join(dir, name)
		info, err := os.Lstat(next)
		switch {
		case err != nil:
			return "", false
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(next)
			if links++; err != nil || links > maxLinks {
				return "", false
			}
			if filepath.IsAbs(to) {
				dir = "/"
			}
			todo = append(strings.Split(to, "/"), todo...)
			continue
		case len(todo) > 0 && !info.IsDir():
			return "", false
		}
		dir = next
	}
	return dir, true
}

// add plans to watch path for changes of name, or for all if name is empty.
func (p plan) add(path, name string, in interest) {
	t, have := p[path]
	if !have {
		info, err := os.Lstat(path)
		if err != nil || len(p) >= maxWatches {
			return
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			t.dev, t.ino = uint64(st.Dev), st.Ino //nolint:unconvert // Dev is 32 bits wide elsewhere
		}
		t.names = map[string]interest{}
	}
	if name == "" {
		t.all |= in
	} else {
		t.names[name] |= in
	}
	p[path] = t
}

// covers reports whether watches for p are enough for o: the same files.
func (p plan) covers(o plan) bool {
	for path, t := range o {
		if have, ok := p[path]; !ok || have.dev != t.dev || have.ino != t.ino {
			return false
		}
	}
	return true
}

// match says what a change of path means, and whether path itself is watched.
func (p plan) match(path string) (in interest, watched bool) {
	if t, ok := p[filepath.Dir(path)]; ok {
		in = t.all | t.names[filepath.Base(path)]
	}
	t, watched := p[path]
	return in | t.all, watched
}
