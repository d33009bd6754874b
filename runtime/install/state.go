package install

import (
	"os"
	"path/filepath"
	"syscall"
)

// state is what the files looked like at one moment. The zero value is that of no
// moment: a state that was taken has a version.
type state struct {
	version    string // the CNI version that the configuration is to have
	conf, shim mark   // what is installed
	from       mark   // the original of the shim
}

// mark tells one content of a file from another without reading it: rename
// changes the inode, a write the change time (inode(7)). The zero value is that
// of a file that is not there.
type mark struct {
	inode uint64
	size  int64
	ctime syscall.Timespec
}

func markOf(path string) mark {
	info, err := os.Lstat(path)
	if err != nil {
		return mark{}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return mark{}
	}
	return mark{inode: stat.Ino, size: stat.Size, ctime: stat.Ctim}
}

func stateOf(i Installer, version string) state {
	return state{
		version: version,
		conf:    markOf(filepath.Join(i.ConfDir, ConfListName)),
		shim:    markOf(filepath.Join(i.BinDir, PluginName)),
		from:    markOf(i.Shim),
	}
}

// complete says whether both files that crinetd installs were there.
func (s state) complete() bool { return s.conf != (mark{}) && s.shim != (mark{}) }
