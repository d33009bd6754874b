package config

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
	maxFile    = 1 << 20  // bytes of one configuration file
	maxTotal   = 32 << 20 // bytes of all of them
	maxFiles   = 256      // configuration files in one directory
	maxEntries = 8192     // entries of one directory that are looked at
)

// OwnFile is the configuration that makes the runtime call crinet. It is
// crinet's to write and never a network.
const OwnFile = "00-crinet.conflist"

// confSuffixes are the ends of configuration files' names, as libcni has them.
func confSuffixes() []string { return []string{".conf", ".conflist", ".json"} }

// Dir is what a conf dir holds. Err is set if it could not be listed;
// fs.ErrNotExist means that there is none.
type Dir struct {
	Path    string
	Files   []File          // by name
	Folders map[string]*Dir // by name: folders that may hold a network's plugins
	Err     error
}

// File is a configuration file, symlinks followed. Err is set if it could not
// be read; fs.ErrNotExist means a symlink to nothing.
type File struct {
	Name string
	Data []byte
	Err  error
}

// ReadDir reads the conf dir at path and the folders in it: the files that
// libcni would read (.conf, .conflist, .json; only .conf in folders), without
// dotfiles and OwnFile. Nothing in the directory makes it block.
func ReadDir(path string) *Dir {
	budget := maxTotal
	dir, folders := readDir(path, confSuffixes(), &budget)
	dir.Folders = map[string]*Dir{}
	for _, name := range folders {
		dir.Folders[name], _ = readDir(filepath.Join(path, name), []string{".conf"}, &budget)
	}
	return dir
}

// readDir reads the files of one directory that have one of the suffixes, and
// returns the names of its folders.
func readDir(path string, suffixes []string, budget *int) (dir *Dir, folders []string) {
	dir = &Dir{Path: path}
	entries, err := list(path)
	if err != nil {
		dir.Err = err
		return dir, nil
	}
	for _, e := range entries {
		name := e.Name()
		ours := slices.Contains(suffixes, filepath.Ext(name))
		info, err := os.Stat(filepath.Join(path, name))
		if err == nil && info.IsDir() && (e.IsDir() || !ours) {
			folders = append(folders, name)
			continue
		}
		if !ours {
			continue
		}
		f := File{Name: name, Err: err}
		switch {
		case err != nil && e.Type()&fs.ModeSymlink == 0 && errors.Is(err, fs.ErrNotExist):
			continue // removed meanwhile
		case err == nil && len(dir.Files) >= maxFiles:
			f.Err = fmt.Errorf("is not read: more than %d configuration files in the directory", maxFiles)
		case err == nil:
			f.Data, f.Err = readFile(filepath.Join(path, name), info, *budget)
			*budget -= len(f.Data)
		}
		dir.Files = append(dir.Files, f)
	}
	return dir, folders
}

// list returns the entries of a directory by name, without those that are
// nobody's configuration.
func list(path string) ([]fs.DirEntry, error) {
	d, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }() // it was only read
	entries, err := d.ReadDir(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) == maxEntries {
		return nil, fmt.Errorf("%s has more than %d entries", path, maxEntries)
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return strings.HasPrefix(e.Name(), ".") || e.Name() == OwnFile
	})
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, nil
}

// readFile reads a regular file, if it is small enough.
func readFile(path string, info fs.FileInfo, budget int) ([]byte, error) {
	if !info.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	if budget <= 0 {
		return nil, fmt.Errorf("is not read: the files before it have %d bytes", maxTotal)
	}
	// Not blocking, in case the file is a pipe by now.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %d bytes", maxFile)
	}
	return data, nil
}
