// Package dirs reads directories and files that others write to: within limits,
// without blocking on pipes and devices, and so that a change is noticed.
package dirs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// MaxEntries is how many entries of a directory List reads.
const MaxEntries = 8192

// ErrTooMany is returned with the first entries of a directory that has more
// than MaxEntries.
var ErrTooMany = fmt.Errorf("has more than %d entries", MaxEntries)

// List returns the entries of the directory at path in the order of their
// names, without those whose name begins with a dot: installers copy to such
// names before they rename. Entries may come together with ErrTooMany.
func List(path string) ([]fs.DirEntry, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }() // it was only read
	entries, err := d.ReadDir(MaxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	err = nil
	if len(entries) > MaxEntries {
		entries, err = entries[:MaxEntries], &fs.PathError{Op: "readdir", Path: path, Err: ErrTooMany}
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), ".") })
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// ReadFile returns the contents of the regular file at path, symlinks followed,
// if they have at most limit bytes.
func ReadFile(path string, limit int) ([]byte, error) {
	irregular := &fs.PathError{Op: "read", Path: path, Err: errors.New("is no regular file")}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, irregular // opening a device may do something
	}
	// In case it is another file by now: a pipe without a writer would block the
	// open, a terminal would become the daemon's own.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, irregular
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("is larger than %d bytes", limit)}
	}
	return data, nil
}

// WriteFile gives the file at path the contents and mode: a reader, and a node
// that loses power, sees the old file or the new one, never a part. The
// directory must exist. The file in the making begins with a dot and has no
// suffix of a configuration. The error names path, and is the same for the same
// cause.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	if err := replace(path, data, mode); err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: Cause(err)}
	}
	return nil
}

// replace writes a file beside the path and renames it.
func replace(path string, data []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name()) // what failed before is what matters
		}
	}()
	_, err = tmp.Write(data)
	if err = cmp.Or(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// RemoveUnfinished removes the files that a WriteFile to path left behind which a
// crash cut off. No WriteFile to path may be under way. What cannot be removed does
// no harm.
func RemoveUnfinished(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, entry := range entries {
		middle, ok := strings.CutPrefix(entry.Name(), "."+filepath.Base(path)+".")
		random, isTemp := strings.CutSuffix(middle, ".tmp")
		_, notNumber := strconv.ParseUint(random, 10, 64) // see os.CreateTemp
		if ok && isTemp && notNumber == nil && entry.Type().IsRegular() {
			_ = os.Remove(filepath.Join(filepath.Dir(path), entry.Name()))
		}
	}
}

// Cause returns the error behind one that names a path, for messages that name
// the path already. Other errors are returned as they are.
func Cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var link *os.LinkError
	if errors.As(err, &link) {
		return link.Err
	}
	return err
}
