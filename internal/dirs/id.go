package dirs

import (
	"io/fs"
	"syscall"
)

// ID identifies one state of a file: it differs after every change of the
// file's contents, owner, mode or number of links, because such a change sets
// ctime, which no program can set back (stat(2)). Two changes within one tick
// of the kernel's clock, up to 10 ms, may have one ID. The zero ID is that of
// no file. IDs are comparable.
type ID struct {
	Dev, Ino     uint64
	Size         int64
	Mode         uint32
	Mtime, Ctime syscall.Timespec
}

// IDOf returns the ID of the file that info was made of.
func IDOf(info fs.FileInfo) ID {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ID{}
	}
	return idOf(st)
}

// Stat returns the ID of the file that path leads to, symlinks followed, or the
// zero ID if there is none.
func Stat(path string) ID {
	var st syscall.Stat_t
	for {
		switch err := syscall.Stat(path, &st); err {
		case nil:
			return idOf(&st)
		case syscall.EINTR: // network file systems
		default:
			return ID{}
		}
	}
}

// IsZero reports whether the ID is that of no file.
func (id ID) IsZero() bool { return id == ID{} }

// IsDir reports whether the ID is that of a directory.
func (id ID) IsDir() bool { return id.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// IsRegular reports whether the ID is that of a regular file.
func (id ID) IsRegular() bool { return id.Mode&syscall.S_IFMT == syscall.S_IFREG }

// IsExecutable reports whether the ID is that of a regular file with an execute
// bit, which root may execute.
func (id ID) IsExecutable() bool { return id.IsRegular() && id.Mode&0o111 != 0 }

func idOf(st *syscall.Stat_t) ID {
	return ID{
		Dev: uint64(st.Dev), Ino: st.Ino, Size: st.Size, Mode: st.Mode, Mtime: st.Mtim, Ctime: st.Ctim, //nolint:unconvert // Dev is 32 bits wide elsewhere
	}
}
