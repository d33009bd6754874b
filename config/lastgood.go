package config

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/internal/dirs"
)

// maxKept is the maximum length of a store's file in bytes: base64 and names add
// to what ReadDir reads.
const maxKept = 2 * maxTotal

// store keeps the last good versions of the configuration files in a file, so
// that a broken configuration and a restart of crinetd together take no network
// away. What is kept is bounded by what ReadDir reads.
type store struct {
	path    string // empty: nothing is kept
	confDir string
	log     *slog.Logger
	todo    chan map[string]*parsed // the newest versions to keep; one at most
	kept    []byte                  // what the file holds; used by run alone
	failed  string                  // what was logged last
}

// kept is the JSON in a store's file.
type kept struct {
	ConfDir string              `json:"confDir"`
	Files   map[string]keptFile `json:"files"` // name -> version
}

// keptFile is a configuration file, and the files of the network's folder if
// plugins are from there.
type keptFile struct {
	Data   []byte            `json:"data"`
	Folder string            `json:"folder,omitempty"`
	Files  map[string][]byte `json:"files,omitempty"` // name -> contents
}

func newStore(path, confDir string, log *slog.Logger) *store {
	return &store{path: path, confDir: confDir, log: log, todo: make(chan map[string]*parsed, 1)}
}

// load returns the versions that an earlier crinetd kept, by file name. Those of
// another conf dir do not count, and a file that cannot be read is logged.
func (s *store) load(ctx context.Context) map[string]*parsed {
	last := map[string]*parsed{}
	if s.path == "" {
		return last
	}
	dirs.RemoveUnfinished(s.path)
	var k kept
	data, err := dirs.ReadFile(s.path, maxKept)
	if err == nil {
		err = json.Unmarshal(data, &k)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.WarnContext(ctx, "the last good CNI configurations cannot be read", "file", s.path, "err", err)
	}
	if err != nil || k.ConfDir != s.confDir {
		return last
	}
	s.kept = data
	for name, f := range k.Files {
		dir := &Dir{Path: s.confDir, Folders: map[string]*Dir{}}
		if f.Folder != "" {
			folder := &Dir{Path: filepath.Join(s.confDir, f.Folder)}
			for _, name := range slices.Sorted(maps.Keys(f.Files)) {
				folder.Files = append(folder.Files, File{Name: name, Data: f.Files[name]})
			}
			dir.Folders[f.Folder] = folder
		}
		if p, bad := parse(dir, File{Name: name, Data: f.Data}); bad == nil {
			last[name] = p
		}
	}
	return last
}

// keep asks run to keep these versions and no others. It does not wait.
func (s *store) keep(good map[string]*parsed) {
	select {
	case <-s.todo: // older ones that are not written yet
	default:
	}
	s.todo <- good
}

// run writes what keep is given until ctx ends, and then what is left. What
// cannot be written is tried again.
func (s *store) run(ctx context.Context) {
	var good map[string]*parsed
	wait := backoff.Backoff{First: time.Second, Max: time.Minute}
	again := time.NewTimer(0)
	defer again.Stop()
	for ended := false; !ended; {
		select {
		case good = <-s.todo:
		case <-again.C:
		case <-ctx.Done():
			ended = true
			select {
			case good = <-s.todo:
			default:
			}
		}
		if good == nil || s.write(ctx, good) {
			again.Stop()
			wait.Reset()
		} else {
			again.Reset(wait.Next())
		}
	}
}

// write writes the file if it would differ, and reports whether it holds good
// now. An error is logged if it is another one than before.
func (s *store) write(ctx context.Context, good map[string]*parsed) bool {
	if s.path == "" {
		return true
	}
	k := kept{ConfDir: s.confDir, Files: map[string]keptFile{}}
	for name, p := range good {
		f := keptFile{Data: p.source.data}
		if p.folder != nil {
			f.Folder, f.Files = filepath.Base(p.folder.Path), map[string][]byte{}
			for _, plugin := range p.folder.Files {
				f.Files[plugin.Name] = plugin.Data
			}
		}
		k.Files[name] = f
	}
	data, err := json.Marshal(k)
	if err == nil && bytes.Equal(data, s.kept) {
		return true
	}
	if err == nil {
		err = dirs.WriteFile(s.path, data, 0o600)
	}
	if err == nil {
		s.kept, s.failed = data, ""
		return true
	}
	if s.failed != err.Error() {
		s.failed = err.Error()
		s.log.WarnContext(ctx, "the last good CNI configurations cannot be kept: a broken file may cost its network at the next start", "err", err)
	}
	return false
}
