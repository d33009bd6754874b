package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The files in the state dir.
const (
	CurrentFile = "operations.jsonl"
	OlderFile   = "operations.jsonl.1"
)

// Keep is how many operations are kept at least, as far as they have room.
const Keep = 1000

const (
	// maxFile bounds a file in bytes.
	maxFile = 8 << 20
	// share is the part of the free room that a file may take, leastRoom what it must
	// be: the journal is on the same disk, and matters more.
	share     = 8
	leastRoom = 16 << 10
)

// errNoRoom is why nothing is written to a disk that is nearly full.
var errNoRoom = errors.New("the disk has too little room left: the journal needs it")

// lines is the current file. Its methods must be called one at a time.
type lines struct {
	dir  string
	keep int // operations in a file

	file *os.File // nil while it cannot be opened
	size int64
	done int  // operations that have ended, in the file
	torn bool // the last line has no end
}

func (l *lines) path(name string) string { return filepath.Join(l.dir, name) }

// open opens the current file, or makes it, and counts its operations.
func (l *lines) open() error {
	file, err := os.OpenFile(l.path(CurrentFile), os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	text, err := readAll(file)
	if err == nil {
		err = file.Chmod(0o600)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.file, l.size, l.done = file, int64(len(text)), 0
	for line := range bytes.Lines(text) {
		if _, done := head(line); done {
			l.done++
		}
	}
	l.torn = len(text) > 0 && text[len(text)-1] != '\n'
	return nil
}

// head returns the id of a line's operation, empty if it is no such line, and whether
// the operation has ended. Both are the line's first fields, so that it need not be
// decoded.
func head(line []byte) (id string, done bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"id":"`))
	end := bytes.IndexByte(rest, '"')
	if !ok || end < 0 {
		return "", false
	}
	return string(rest[:end]), bytes.HasPrefix(rest[end:], []byte(`","state":"`+Done+`",`))
}

// readAll reads a file of ours, and no more than it may have.
func readAll(file *os.File) ([]byte, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", file.Name())
	}
	return io.ReadAll(io.LimitReader(file, maxFile+maxLine))
}

// add appends a line by one write. done says that it is of an operation that has
// ended. If it fails the file is as before.
func (l *lines) add(line []byte, done bool) error {
	if err := l.ensure(); err != nil {
		return err
	}
	room, err := l.room()
	if err != nil {
		return err
	}
	if room < leastRoom {
		return errNoRoom
	}
	if l.done >= l.keep || l.size+int64(len(line)) > room {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	if l.torn {
		line = append([]byte("\n"), line...)
	}
	n, err := unix.Write(int(l.file.Fd()), line)
	if err == nil && n < len(line) {
		err = unix.ENOSPC
	}
	if err != nil {
		if n > 0 {
			l.torn = l.file.Truncate(l.size) != nil || l.torn
		}
		return err
	}
	l.size, l.torn = l.size+int64(n), false
	if done {
		l.done++
	}
	return nil
}

// ensure opens the file if it is not open, and again if somebody removed it.
func (l *lines) ensure() error {
	if l.file != nil {
		var at unix.Stat_t
		if err := unix.Fstat(int(l.file.Fd()), &at); err == nil && at.Nlink > 0 {
			return nil
		}
		_ = l.close() // nothing is lost by an error: nobody finds the file
	}
	return l.open()
}

// room is how large the file may become.
func (l *lines) room() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(l.file.Fd()), &fs); err != nil {
		return 0, err
	}
	free := int64(min(fs.Bavail, 1<<40)) * fs.Bsize
	return min(maxFile, (free+l.size)/share), nil
}

// rotate begins a new file. The full one replaces the older one.
func (l *lines) rotate() error {
	if l.size == 0 {
		return nil
	}
	if err := os.Rename(l.path(CurrentFile), l.path(OlderFile)); err != nil {
		return err
	}
	_ = l.close() // what was written is the kernel's
	return l.open()
}

func (l *lines) close() error {
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}
