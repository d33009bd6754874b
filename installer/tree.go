package installer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tree is the node's file system. Paths are the node's, absolute; links that lead out
// of a root other than / are not followed.
type tree struct {
	dir  string
	fail func(name string) error // has a write fail, in tests
}

func (t *tree) path(name string) string { return filepath.Join(t.dir, name) }

// read returns what is at a path.
func (t *tree) read(name string) (file, error) {
	info, err := os.Lstat(t.path(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotDir) {
		return file{}, nil
	}
	if err != nil {
		return file{}, err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(t.path(name))
		return file{Exists: true, Link: target}, err
	case info.Mode().IsRegular():
		text, err := os.ReadFile(t.path(name))
		return file{Exists: true, Text: text, Mode: info.Mode().Perm()}, err
	default:
		return file{}, fmt.Errorf("%s is neither a file nor a link", name)
	}
}

// write makes what is at a path what it should be, in one step. It returns the
// folders that it made, the outermost first.
func (t *tree) write(name string, f file) (made []string, err error) {
	if t.fail != nil {
		if err := t.fail(name); err != nil {
			return nil, err
		}
	}
	if !f.Exists {
		err := os.Remove(t.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	if made, err = t.mkdir(filepath.Dir(name)); err != nil {
		return made, err
	}
	temp := filepath.Join(filepath.Dir(t.path(name)), "."+filepath.Base(name)+".crinet")
	if err := errors.Join(ignoreMissing(os.Remove(temp)), f.create(temp)); err != nil {
		return made, errors.Join(err, ignoreMissing(os.Remove(temp)))
	}
	if err := os.Rename(temp, t.path(name)); err != nil {
		return made, errors.Join(err, ignoreMissing(os.Remove(temp)))
	}
	return made, nil
}

// mkdir makes a folder and those above it.
func (t *tree) mkdir(name string) (made []string, err error) {
	if info, err := os.Stat(t.path(name)); err == nil && info.IsDir() {
		return nil, nil
	}
	if parent := filepath.Dir(name); parent != name {
		if made, err = t.mkdir(parent); err != nil {
			return made, err
		}
	}
	if err := os.Mkdir(t.path(name), 0o755); err != nil {
		return made, err
	}
	return append(made, name), nil
}

// exists says whether there is anything at a path.
func (t *tree) exists(name string) bool {
	_, err := os.Stat(t.path(name))
	return err == nil
}

// glob returns the node's paths that match.
func (t *tree) glob(pattern string) []string {
	found, err := filepath.Glob(t.path(pattern))
	if err != nil {
		return nil // the patterns are constants
	}
	for i := range found {
		rel, err := filepath.Rel(t.dir, found[i])
		if err != nil {
			return nil
		}
		found[i] = "/" + rel
	}
	return found
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeEmpty removes a folder if it is empty.
func removeEmpty(path string) error {
	err := os.Remove(path)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return ignoreMissing(err)
}
