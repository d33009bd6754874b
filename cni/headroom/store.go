package headroom

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFiles is how many files of a folder are looked at, chunk how many at once.
	maxFiles = 1 << 17
	chunk    = 1024
	// maxHolder is more than a file can have that is of a container id and an
	// interface, in bytes.
	maxHolder = 512
	// settled is how much older than a look at a folder its last change must be for
	// the next look to be left out: file systems count time in ticks.
	settled = time.Second
)

// store is what was seen of one folder of host-local's files.
type store struct {
	dir       string
	files     map[netip.Addr]file
	seen      bool      // it was read
	absent    bool      // it was not there
	changed   time.Time // its mtime when it was read
	stable    bool      // that was old enough by then to tell a later change
	truncated bool
	err       error
}

// file is the file of one address.
type file struct {
	holder string // the container's id; empty if it cannot be told
	inode  uint64
	mtime  time.Time
}

// stale says whether the folder must be read again. A folder that is not there has
// no addresses in use.
func (s *store) stale() bool {
	info, err := os.Stat(s.dir)
	switch {
	case !s.seen || s.err != nil:
		return true
	case err != nil:
		return !s.absent || !errors.Is(err, os.ErrNotExist)
	default:
		return s.absent || !s.stable || !info.ModTime().Equal(s.changed)
	}
}

// read reads the folder. Files that it has read before and that have not changed since
// are not opened again.
func (s *store) read(ctx context.Context, now time.Time) {
	before := s.files
	*s = store{dir: s.dir, files: make(map[netip.Addr]file, len(before)), seen: true}
	dir, err := os.Open(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		s.absent = true // no pod has had an address yet
		return
	}
	if err != nil {
		s.err = err
		return
	}
	defer func() { _ = dir.Close() }() // it was only read
	info, err := dir.Stat()
	if err != nil {
		s.err = err
		return
	}
	s.changed = info.ModTime()
	s.stable = now.Sub(s.changed) > settled
	text := make([]byte, maxHolder)
	for seen := 0; ; {
		names, err := dir.Readdirnames(chunk)
		for _, name := range names {
			if a, err := netip.ParseAddr(name); err == nil && a.Zone() == "" {
				s.add(int(dir.Fd()), name, a.Unmap(), before, text)
			}
		}
		seen += len(names)
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			s.err = err
			return
		case ctx.Err() != nil:
			s.err = ctx.Err()
			return
		case seen >= maxFiles:
			s.truncated = true
			return
		}
	}
}

// add takes one file, as it was read before if it is still that one.
func (s *store) add(dir int, name string, a netip.Addr, before map[netip.Addr]file, text []byte) {
	var stat unix.Stat_t
	if unix.Fstatat(dir, name, &stat, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return // freed meanwhile
	}
	f := file{inode: stat.Ino, mtime: time.Unix(stat.Mtim.Unix())}
	if known, ok := before[a]; ok && known.holder != "" && known.inode == f.inode && known.mtime.Equal(f.mtime) {
		s.files[a] = known
		return
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFREG {
		f.holder = holder(dir, name, text)
	}
	s.files[a] = f
}

// holder reads whose an address is: the first line of its file.
func holder(dir int, name string, text []byte) string {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	n, _ := unix.Read(fd, text)
	_ = unix.Close(fd)
	id, _, _ := bytes.Cut(text[:max(n, 0)], []byte("\n"))
	return strings.TrimSpace(string(id))
}

// problem says what was not read.
func (s *store) problem() string {
	switch {
	case s.err != nil:
		return s.err.Error()
	case s.truncated:
		return fmt.Sprintf("%s has more than %d files: there are more addresses in use than were counted", s.dir, maxFiles)
	default:
		return ""
	}
}
