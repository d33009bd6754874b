package installer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
)

// manifestFile is where the node keeps what was there before.
const manifestFile = stateDir + "/manifest.json"

// manifestVersion is that of the manifest's form.
const manifestVersion = 1

// manifest is what installing changed.
type manifest struct {
	Version int `json:"version"`
	// Files are the changed ones, by path.
	Files map[string]changed `json:"files"`
	// Endpoint is the container runtime's.
	Endpoint string `json:"endpoint"`
	// Dirs are the folders that were made, in that order.
	Dirs []string `json:"dirs"`
}

// changed is a path before and after.
type changed struct {
	Before file `json:"before"`
	After  file `json:"after"`
}

// readManifest returns the manifest, an empty one if there is none.
func (t *tree) readManifest() (*manifest, error) {
	m := &manifest{Version: manifestVersion, Files: make(map[string]changed)}
	f, err := t.read(manifestFile)
	if err != nil || !f.Exists {
		return m, err
	}
	if err := json.Unmarshal(f.Text, m); err != nil {
		return nil, fmt.Errorf("%s: %w", manifestFile, err)
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("%s has version %d, this crinetctl knows %d: use the crinetctl that installed", manifestFile, m.Version, manifestVersion)
	}
	return m, nil
}

// writeManifest stores a manifest that is not empty, and removes an empty one.
func (t *tree) writeManifest(m *manifest) error {
	if len(m.Files) == 0 {
		_, err := t.write(manifestFile, file{})
		return errors.Join(err, t.removeDirs(m))
	}
	encoded, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	made, err := t.write(manifestFile, file{Exists: true, Text: append(encoded, '\n'), Mode: 0o600})
	m.made(made)
	return err
}

func (m *manifest) clone() *manifest {
	return &manifest{Version: m.Version, Endpoint: m.Endpoint, Files: maps.Clone(m.Files), Dirs: slices.Clone(m.Dirs)}
}

func (m *manifest) made(dirs []string) {
	for _, dir := range dirs {
		if !slices.Contains(m.Dirs, dir) {
			m.Dirs = append(m.Dirs, dir)
		}
	}
}

// original returns a file as it was before crinet came: what the manifest keeps, as
// long as nobody has changed the file since.
func (t *tree) original(m *manifest, name string) (file, error) {
	now, err := t.read(name)
	if c, ok := m.Files[name]; err == nil && ok && now.equal(c.After) {
		return c.Before, nil
	}
	return now, err
}

// removeDirs removes the folders that were made, as far as they are empty.
func (t *tree) removeDirs(m *manifest) error {
	dirs := slices.Clone(m.Dirs)
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range dirs {
		if err := removeEmpty(t.path(dir)); err != nil {
			return fmt.Errorf("remove %s: %w", path.Clean(dir), err)
		}
	}
	return nil
}
