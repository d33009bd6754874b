// Package keep keeps copies of the plugin binaries that attachments were made with, so
// that each can be removed with the plugins that made it when the bin dirs hold them no
// more: a package upgrade or an agent's end may empty those under running pods.
//
// A copy is DIR/HASH/TYPE: a folder for each content, named by the beginning of its
// SHA-256 hash, with one file that is named as plugins are looked up. Folders of several
// binaries therefore make a search path (CNI_PATH), in which a plugin finds its IPAM
// plugin as well. Copies are made once for each version of a binary, on the disk before
// they count, and removed when no attachment needs them.
//
// Copies, not hard links: an installer that writes into the file that is there would
// change a link as well.
package keep

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/internal/dirs"
)

const (
	// maxBinary bounds a binary in bytes, maxKept how many are kept.
	maxBinary = 256 << 20
	maxKept   = 128
	// share is the part of the disk's free room that a copy may take: the journal is on
	// the same disk.
	share = 4
	// hashLength is how many characters of a hash are a folder's name.
	hashLength = 32
	// graceOfUse is how long a copy stays although no attachment is seen to need it: one
	// that is planned is not journalled yet.
	graceOfUse = 10 * time.Minute
)

// Store is a folder of copies. It may be used from many goroutines.
type Store struct {
	dir string
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex           // guards what follows, and changes of dir
	known map[string]version   // by path in a bin dir
	used  map[string]time.Time // by hash: when it was asked for last
	told  map[string]string    // by path: what its copy failed with last
}

// version is a state of a file, and the hash of its content.
type version struct {
	id   dirs.ID
	hash string
}

// Open returns the store in dir, which is made when it is needed.
func Open(dir string, log *slog.Logger) *Store {
	return &Store{
		dir: dir, log: log, now: time.Now,
		known: make(map[string]version), used: make(map[string]time.Time), told: make(map[string]string),
	}
}

// Keep makes sure that there are copies of binaries, which are named by their paths, and
// returns their hashes by plugin type. A binary that was seen before costs one stat. One
// that cannot be kept is left out, and the reason is logged once: the pod comes first.
func (s *Store) Keep(paths []string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := make(map[string]string, len(paths))
	for _, path := range paths {
		hash, err := s.keep(path)
		if err == nil {
			kept[filepath.Base(path)], s.used[hash] = hash, s.now()
			delete(s.told, path)
			continue
		}
		if text := err.Error(); s.told[path] != text {
			s.told[path] = text
			s.log.Warn("a plugin's binary is not kept: pods cannot be removed from their network if it goes", "path", path, "err", err)
		}
	}
	return kept
}

// keep returns the hash of a binary of which there is a copy now. The caller holds the
// lock.
func (s *Store) keep(path string) (string, error) {
	id := dirs.Stat(path)
	if known := s.known[path]; known.id == id && !id.IsZero() && s.has(known.hash, path) {
		return known.hash, nil
	}
	hash, err := s.copy(path)
	if err == nil && dirs.Stat(path) == id {
		s.known[path] = version{id, hash}
	}
	return hash, err
}

func (s *Store) file(hash, typ string) string { return filepath.Join(s.dir, hash, typ) }

func (s *Store) has(hash, path string) bool {
	return dirs.Stat(s.file(hash, filepath.Base(path))).IsExecutable()
}

// copy copies a binary to the folder of its hash.
func (s *Store) copy(path string) (hash string, err error) {
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	if err := s.room(from); err != nil {
		return "", err
	}
	to, err := os.CreateTemp(s.dir, unfinished+"*")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, sum), io.LimitReader(from, maxBinary+1))
	if err == nil {
		err = errors.Join(to.Chmod(0o700), to.Sync())
	}
	if err = errors.Join(err, to.Close()); err == nil {
		hash = hex.EncodeToString(sum.Sum(nil))[:hashLength]
		err = s.place(to.Name(), s.file(hash, filepath.Base(path)))
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(to.Name()))
	}
	return hash, nil
}

// unfinished begins the names of copies that are being made.
const unfinished = ".copy-"

// room makes the store's folder, and says whether there is room for a copy of a file.
func (s *Store) room(file *os.File) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(s.dir, &disk); err != nil {
		return fmt.Errorf("%s: %w", s.dir, err)
	}
	entries, err := os.ReadDir(s.dir)
	switch free := int64(disk.Bavail) * disk.Bsize; {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return errors.New("it is no regular file")
	case info.Size() > maxBinary:
		return fmt.Errorf("it has %d MiB, %d are the limit", info.Size()>>20, maxBinary>>20)
	case info.Size() > free/share:
		return fmt.Errorf("the disk of %s has %d MiB left, too little for a copy of %d MiB", s.dir, free>>20, info.Size()>>20)
	case len(entries) >= maxKept:
		return fmt.Errorf("%s holds %d copies, which is the limit", s.dir, len(entries))
	}
	return nil
}

// place moves a finished copy to where it belongs, on the disk.
func (s *Store) place(from, to string) error {
	folder := filepath.Dir(to)
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(syncDir(folder), syncDir(s.dir))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
