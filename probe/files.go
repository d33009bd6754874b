package probe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const (
	// maxFiles is how many executables of a directory are probed.
	maxFiles = 512
	// maxEntries is how many entries of a directory are looked at.
	maxEntries = 8192
)

// identity changes whenever a file's contents, mode or inode do: ctime cannot
// be set by users.
type identity struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// file is a regular file in a bin dir, symlinks followed.
type file struct {
	name, path string
	mode       fs.FileMode
	id         identity
}

func (f file) executable() bool { return f.mode.Perm()&0o111 != 0 }

// listDir returns dir's regular files by name, and a reason if it could not
// look at all of them.
func listDir(dir string) (files []file, reason string) {
	names, reason := readNames(dir)
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue // gone again, a dangling symlink, a folder: no plugin
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			continue
		}
		if len(files) == maxFiles {
			return files, fmt.Sprintf("has more than %d files; those from %s on are not probed", maxFiles, name)
		}
		files = append(files, file{name: name, path: path, mode: info.Mode(), id: identity{
			dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim, //nolint:unconvert // Dev is 32 bits wide elsewhere
		}})
	}
	return files, reason
}

// readNames returns the names in dir, sorted. Dotfiles are left out: they are
// what installers copy to before they rename.
func readNames(dir string) (names []string, reason string) {
	d, err := os.Open(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "does not exist"
	case err != nil:
		return nil, "cannot be opened: " + errno(err)
	}
	defer func() { _ = d.Close() }() // it was only read
	names, err = d.Readdirnames(maxEntries)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		reason = "cannot be read: " + errno(err)
	case len(names) == maxEntries:
		reason = fmt.Sprintf("has more than %d entries; not all are looked at", maxEntries)
	}
	slices.Sort(names)
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") })
	return names, reason
}

// errno returns what is behind an error whose path is known.
func errno(err error) string {
	var perr *fs.PathError
	if errors.As(err, &perr) {
		err = perr.Err
	}
	return err.Error()
}
