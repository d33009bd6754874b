package probe

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/internal/dirs"
)

// maxFiles is how many files of a directory are listed.
const maxFiles = 512

// found is the result of one search through the bin dirs.
type found struct {
	set *Plugins           // without answers
	ask map[string]dirs.ID // path of a named plugin -> its file
}

// search looks for all executables, the first of each name, and for the given
// types also beyond the limit of a directory.
func search(binDirs, types []string) *found {
	f := &found{set: &Plugins{others: map[string]Plugin{}}, ask: map[string]dirs.ID{}}
	all := map[string]*Plugin{}
	for _, dir := range binDirs {
		names, reason := list(dir)
		f.set.dirs = append(f.set.dirs, Dir{Path: dir, Reason: reason})
		names = append(names, types...)
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			path := filepath.Join(dir, name)
			id := dirs.Stat(path)
			switch {
			case !id.IsRegular(): // gone again, a dangling symlink, a folder
			case id.IsExecutable() && all[name] != nil:
				all[name].Shadowed = append(all[name].Shadowed, path)
			case id.IsExecutable():
				all[name] = &Plugin{Name: name, Path: path}
				if name != ShimType && slices.Contains(types, name) {
					f.ask[path] = id
				}
			case f.set.others[name].Path == "":
				f.set.others[name] = Plugin{Name: name, Path: path, NotExecutable: true,
					Reason: fmt.Sprintf("is not executable (mode %04o)", id.Mode&0o777)}
			}
		}
	}
	for _, p := range all {
		f.set.all = append(f.set.all, *p)
	}
	slices.SortFunc(f.set.all, func(a, b Plugin) int { return cmp.Compare(a.Name, b.Name) })
	return f
}

// list returns the first names in dir, and a reason if there are more or none.
func list(dir string) (names []string, reason string) {
	entries, err := dirs.List(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "does not exist"
	case errors.Is(err, dirs.ErrTooMany):
		reason = fmt.Sprintf("%v; not all are listed", dirs.Cause(err))
	case err != nil:
		reason = "cannot be read: " + dirs.Cause(err).Error()
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		if len(names) == maxFiles {
			return names, fmt.Sprintf("has more than %d files; from %s on only those that a configuration names are listed", maxFiles, e.Name())
		}
		names = append(names, e.Name())
	}
	return names, reason
}
