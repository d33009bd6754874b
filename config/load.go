package config

import (
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
)

// loaded is the conf dir, read and parsed, before anybody has looked for
// plugins. It is immutable.
type loaded struct {
	dir    string
	reason string // why the directory could not be read; empty if it could
	files  []loadedFile
}

// loadedFile is one configuration file.
type loadedFile struct {
	path   string
	parsed *parsed    // what the file says, or its last good version; nil if there is neither
	bad    *fileError // why the file's own version is not used
}

// load parses what the conf dir holds. last has the last good versions, by file
// name: a file that is broken, or cannot be read at the moment, keeps its own
// until it is good again or gone.
func load(dir *Dir, last map[string]*parsed) *loaded {
	l := &loaded{dir: dir.Path}
	switch {
	case errors.Is(dir.Err, fs.ErrNotExist):
		l.reason = "does not exist"
	case errors.Is(dir.Err, syscall.ENOTDIR):
		l.reason = "is no directory"
	case dir.Err != nil:
		l.reason = "cannot be read: " + errno(dir.Err)
		for _, name := range slices.Sorted(maps.Keys(last)) {
			l.add(dir, File{Name: name, Err: errors.New("the directory " + l.reason)}, last[name])
		}
	}
	for _, f := range dir.Files {
		l.add(dir, f, last[f.Name])
	}
	return l
}

// add parses a file; last is its last good version, or nil.
func (l *loaded) add(dir *Dir, f File, last *parsed) {
	p, bad := parse(dir, f)
	if bad != nil && !errors.Is(f.Err, fs.ErrNotExist) {
		p = last
	}
	l.files = append(l.files, loadedFile{path: filepath.Join(dir.Path, f.Name), parsed: p, bad: bad})
}

// good returns the versions to keep, by file name.
func (l *loaded) good() map[string]*parsed {
	good := map[string]*parsed{}
	for _, f := range l.files {
		if f.parsed != nil {
			good[filepath.Base(f.path)] = f.parsed
		}
	}
	return good
}

// types returns the plugin types that the configurations name, sorted: those of
// the chains, of their IPAM, and of delegates where the configuration shows them.
func (l *loaded) types() []string {
	var types []string
	for _, f := range l.files {
		if f.parsed == nil {
			continue
		}
		types = append(types, f.parsed.types()...)
	}
	slices.Sort(types)
	return slices.Compact(types)
}

// types returns the types of the plugins that a configuration names, as far as
// they can be the name of a binary.
func (p *parsed) types() []string {
	var types []string
	for _, pl := range p.plugins {
		types = append(append(types, pl.typ, pl.ipam), pl.delegates...)
	}
	return slices.DeleteFunc(types, func(t string) bool { return !isFileName(t) })
}
