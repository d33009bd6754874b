package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/internal/dirs"
)

const (
	maxFile  = 1 << 20  // bytes of one configuration file
	maxTotal = 32 << 20 // bytes of all of them
	maxFiles = 256      // configuration files in one directory
)

// OwnFile is the configuration that makes the runtime call crinet. crinetd
// writes it and never takes it for a network.
const OwnFile = "00-crinet.conflist"

// confSuffixes are the extensions of configuration files, as in libcni's
// ConfFiles; folderSuffixes those in a network's folder.
func confSuffixes() []string   { return []string{".conf", ".conflist", ".json"} }
func folderSuffixes() []string { return []string{".conf"} }

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

// entry is a configuration file in a directory.
type entry struct {
	name string
	id   dirs.ID // of what a symlink leads to; zero if it leads nowhere
	link bool
}

// entries returns the files of a directory that have one of the suffixes, and
// the names of its folders, symlinks to folders among them. Both are sorted.
func entries(path string, suffixes []string) (files []entry, folders []string, err error) {
	all, err := dirs.List(path)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range all {
		name := e.Name()
		ours := slices.Contains(suffixes, filepath.Ext(name))
		if name == OwnFile || (!ours && e.Type().IsRegular()) {
			continue
		}
		id := dirs.Stat(filepath.Join(path, name))
		switch link := e.Type()&fs.ModeSymlink != 0; {
		case id.IsDir() && (e.IsDir() || !ours):
			folders = append(folders, name)
		case ours:
			files = append(files, entry{name: name, id: id, link: link})
		}
	}
	return files, folders, nil
}

// ReadDir reads the conf dir at path and the folders in it: the files that
// libcni would read (.conf, .conflist, .json; only .conf in folders), without
// dotfiles and OwnFile. Nothing in the directory makes it block.
func ReadDir(path string) *Dir {
	budget := maxTotal
	dir, folders := readDir(path, confSuffixes(), &budget)
	dir.Folders = map[string]*Dir{}
	for _, name := range folders {
		dir.Folders[name], _ = readDir(filepath.Join(path, name), folderSuffixes(), &budget)
	}
	return dir
}

// readDir reads the files of one directory that have one of the suffixes, and
// returns the names of its folders. It takes what it reads from the budget, in
// bytes.
func readDir(path string, suffixes []string, budget *int) (dir *Dir, folders []string) {
	dir = &Dir{Path: path}
	files, folders, err := entries(path, suffixes)
	dir.Err = err
	for _, e := range files {
		f := File{Name: e.name}
		switch {
		case len(dir.Files) >= maxFiles:
			f.Err = fmt.Errorf("is not read: more than %d configuration files in the directory", maxFiles)
		case *budget <= 0:
			f.Err = fmt.Errorf("is not read: the files before it have %d bytes", maxTotal)
		default:
			f.Data, f.Err = dirs.ReadFile(filepath.Join(path, e.name), maxFile)
			*budget -= len(f.Data)
		}
		if !e.link && errors.Is(f.Err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		dir.Files = append(dir.Files, f)
	}
	return dir, folders
}
