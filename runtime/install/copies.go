package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/internal/dirs"
)

const (
	// manifestName lists the files of a conf dir that are copies. Its suffix
	// keeps runtimes from reading it.
	manifestName = ".crinet-mirror"
	// maxMirrored bounds the files of a conf dir and maxMirroredSize each one's
	// size in bytes.
	maxMirrored     = 256
	maxMirroredSize = 1 << 20
)

// update writes the wanted copies and removes the stale ones. The manifest names
// a copy before it is written, so that none is ever taken for somebody else's.
func update(dir string, wanted map[string][]byte, copies, stale []string) error {
	names := slices.Sorted(maps.Keys(wanted))
	if err := writeManifest(dir, append(slices.Clone(names), copies...)); err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if _, err := write(filepath.Dir(path), filepath.Base(path), wanted[name], 0o600); err != nil {
			return err
		}
	}
	if err := removeCopies(dir, stale); err != nil {
		return err
	}
	return writeManifest(dir, names)
}

// removeMirror takes all copies out of a runtime's conf dir.
func removeMirror(dir string) error {
	copies, err := readManifest(dir)
	if err != nil || copies == nil {
		return err
	}
	if err := removeCopies(dir, copies); err != nil {
		return err
	}
	return writeManifest(dir, nil)
}

// removeCopies removes files, and the folders that are empty without them.
func removeCopies(dir string, names []string) error {
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a copy of a CNI configuration: %w", err)
		}
		if folder := filepath.Dir(name); folder != "." {
			_ = os.Remove(filepath.Join(dir, folder)) // it fails while there are files
		}
	}
	return nil
}

// readManifest returns the names of the copies in a conf dir; nil if nobody wrote
// a manifest there.
func readManifest(dir string) ([]string, error) {
	path := filepath.Join(dir, manifestName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := []string{}
	if err := json.Unmarshal(data, &names); err != nil {
		return nil, fmt.Errorf("%s: %w; remove it and the files beside it that are copies", path, err)
	}
	for _, name := range names {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%s names %q, which is not below it; remove it and the files beside it that are copies", path, name)
		}
	}
	return names, nil
}

// writeManifest makes the manifest list names; without names there is none.
func writeManifest(dir string, names []string) error {
	if len(names) == 0 {
		if err := os.Remove(filepath.Join(dir, manifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	slices.Sort(names)
	data, err := json.Marshal(slices.Compact(names))
	if err != nil {
		return err
	}
	_, err = write(dir, manifestName, data, 0o600)
	return err
}

// readConfigurations returns what runtimes read of a conf dir, by path below it:
// files with their suffixes, and those in the folders of networks that load their
// plugins from there (CNI spec 1.1, loadOnlyInlinedPlugins). A dir that is not
// there holds nothing; a file that cannot be read is an error, so that it is not
// taken for one that is gone.
func readConfigurations(dir string) (map[string][]byte, error) {
	files := make(map[string][]byte)
	folders, err := readFolder(dir, "", files)
	for _, folder := range folders {
		if err == nil {
			_, err = readFolder(dir, folder, files)
		}
	}
	return files, err
}

// readFolder adds the configurations of one folder of dir to files, and returns
// the folders in it. The name of a network, and so of its folder, does not begin
// with a dot.
func readFolder(dir, folder string, files map[string][]byte) (folders []string, err error) {
	entries, err := dirs.List(filepath.Join(dir, folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		name := filepath.Join(folder, entry.Name())
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist): // a link to nowhere, or gone by now
		case err != nil:
			return nil, err
		case info.IsDir():
			folders = append(folders, name)
		case info.Mode().IsRegular() && info.Size() <= maxMirroredSize && isConfiguration(name) && len(files) < maxMirrored:
			data, err := dirs.ReadFile(path, maxMirroredSize)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			if err == nil {
				files[name] = data
			}
		}
	}
	return folders, nil
}

func isConfiguration(name string) bool {
	switch filepath.Ext(name) {
	case ".conf", ".conflist", ".json":
		return name != ConfListName
	default:
		return false
	}
}
