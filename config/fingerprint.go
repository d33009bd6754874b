package config

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/crinet-project/crinet/internal/dirs"
)

// clockTick is longer than a tick of the kernel's clock: before Linux 6.13 two
// changes of a file within one tick have one ctime.
const clockTick = 50 * time.Millisecond

// fingerprint is the state of directories, told by the state of the files that
// matter in them. It is made by stat(2) only, which no file can block.
type fingerprint struct {
	items []printed
	// young: a file changed less than a tick before the fingerprint was made, so
	// that the next change may not be told from it.
	young bool
}

// printed is one directory or file of a fingerprint.
type printed struct {
	path   string
	id     dirs.ID
	reason string // why a directory cannot be read
}

// printConf makes the fingerprint of the conf dir: of all that ReadDir reads.
func printConf(dir string) *fingerprint {
	f := &fingerprint{}
	for _, folder := range f.dir(dir, confSuffixes()) {
		f.dir(filepath.Join(dir, folder), folderSuffixes())
	}
	now := time.Now()
	f.young = slices.ContainsFunc(f.items, func(p printed) bool {
		return now.Sub(time.Unix(p.id.Ctime.Unix())).Abs() < clockTick
	})
	return f
}

// dir adds a directory and its configuration files and returns its folders. Other
// files may come and go, so that the directory's own times do not count.
func (f *fingerprint) dir(path string, suffixes []string) (folders []string) {
	id := dirs.Stat(path)
	self := printed{path: path, id: dirs.ID{Dev: id.Dev, Ino: id.Ino, Mode: id.Mode}}
	files, folders, err := entries(path, suffixes)
	if err != nil {
		self.reason = err.Error()
	}
	f.items = append(f.items, self)
	for _, e := range files {
		f.items = append(f.items, printed{path: filepath.Join(path, e.name), id: e.id})
	}
	return folders
}

// printBins makes the fingerprint of the bin dirs: of the plugins of the given
// types, and of the directories themselves, whose times change with the names in
// them.
func printBins(binDirs, types []string) *fingerprint {
	f := &fingerprint{}
	for _, dir := range binDirs {
		f.items = append(f.items, printed{path: dir, id: dirs.Stat(dir)})
		for _, typ := range types {
			path := filepath.Join(dir, typ)
			f.items = append(f.items, printed{path: path, id: dirs.Stat(path)})
		}
	}
	return f
}

// same reports whether nothing has changed since old was made, which may be nil.
func (f *fingerprint) same(old *fingerprint) bool {
	return old != nil && !old.young && slices.Equal(f.items, old.items)
}

// watchPaths returns the directories whose events are worth having: the conf
// dir, the folders in it, the bin dirs, and of each the nearest parent that
// exists.
func watchPaths(confDir string, binDirs []string) []string {
	var paths []string
	for _, dir := range append([]string{confDir}, binDirs...) {
		parent := filepath.Dir(dir)
		for parent != "/" && !dirs.Stat(parent).IsDir() {
			parent = filepath.Dir(parent)
		}
		paths = append(paths, dir, parent)
	}
	_, folders, _ := entries(confDir, nil) // the scan reports the error
	for _, folder := range folders {
		paths = append(paths, filepath.Join(confDir, folder))
	}
	return paths
}
