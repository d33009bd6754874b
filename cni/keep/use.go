package keep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/crinet-project/crinet/internal/backoff"
)

// pruneEvery is the time between two looks for copies that nobody needs.
const pruneEvery = time.Hour

// folderName is the form of a hash.
var folderName = regexp.MustCompile(fmt.Sprintf(`^[0-9a-f]{%d}$`, hashLength))

// Dirs returns the folders of copies, of those that Keep returned for an attachment, to
// be searched after the bin dirs.
func (s *Store) Dirs(kept map[string]string) []string {
	var folders []string
	for _, typ := range slices.Sorted(maps.Keys(kept)) {
		if hash := kept[typ]; folderName.MatchString(hash) {
			folders = append(folders, filepath.Join(s.dir, hash))
		}
	}
	return folders
}

// Run removes copies that nobody needs, now and every hour until ctx ends. used returns
// the hashes of those that attachments have.
func (s *Store) Run(ctx context.Context, used func() (map[string]bool, error)) {
	for {
		hashes, err := used()
		if err == nil {
			err = s.prune(hashes)
		}
		if err != nil {
			s.log.Warn("copies of plugins that no pod needs are not removed; crinetd tries again", "dir", s.dir, "err", err)
		}
		if !backoff.Sleep(ctx, pruneEvery) {
			return
		}
	}
}

// prune removes the copies that are not used and were not asked for lately.
func (s *Store) prune(used map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		name := entry.Name()
		switch {
		case strings.HasPrefix(name, unfinished): // an earlier crinetd's
		case !folderName.MatchString(name), used[name], s.now().Sub(s.used[name]) < graceOfUse:
			continue
		}
		delete(s.used, name)
		errs = append(errs, os.RemoveAll(filepath.Join(s.dir, name)))
	}
	return errors.Join(errs...)
}
