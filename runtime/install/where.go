package install

import (
	"cmp"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// Runtime is what crinetd knows of the container runtime (package upstream).
type Runtime interface {
	// Last returns the runtime's last answer, from memory.
	Last() upstream.Answer
	// Wake asks for a new answer.
	Wake()
}

// Config says where Keeper and Mirror install what.
type Config struct {
	Log     *slog.Logger
	Runtime Runtime
	// ConfDir and BinDir are where the runtime looks (--runtime-cni-conf-dir,
	// --runtime-cni-bin-dir); empty ones are asked from the runtime.
	ConfDir, BinDir string
	// Handlers are runtime handlers with a conf dir of their own that crinet
	// serves as well (--runtime-handlers).
	Handlers []string
	// Shim is the path of the crinet binary that is copied.
	Shim string
	// Socket is the path of cni.sock, which the configuration tells the shim.
	Socket string
	// NetworkConfDir is --cni-conf-dir: a runtime's conf dir that is the same is
	// shared with everybody.
	NetworkConfDir string
}

// where returns the conf dirs to install in, the runtime's own first, the bin
// dir, and the handlers with a conf dir that crinet does not serve. There are no
// conf dirs while facts are needed and nil.
func (c *Config) where(facts *upstream.Facts) (dirs []string, binDir string, unserved map[string]string) {
	unserved = make(map[string]string)
	if facts == nil {
		if c.ConfDir != "" && c.BinDir != "" {
			dirs = []string{c.ConfDir}
		}
		return dirs, c.BinDir, unserved
	}
	dirs = []string{cmp.Or(c.ConfDir, facts.ConfDir, DefaultConfDir)}
	binDir = c.BinDir
	if binDir == "" && len(facts.BinDirs) > 0 {
		binDir = facts.BinDirs[0]
	}
	installed := func(dir string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return sameDir(d, dir) })
	}
	for _, handler := range slices.Sorted(maps.Keys(facts.Handlers)) {
		if dir := facts.Handlers[handler]; slices.Contains(c.Handlers, handler) && !installed(dir) {
			dirs = append(dirs, dir)
		}
	}
	for handler, dir := range facts.Handlers {
		if !installed(dir) {
			unserved[handler] = dir
		}
	}
	return dirs, cmp.Or(binDir, DefaultBinDir), unserved
}

// sameDir says whether two paths lead to one directory.
func sameDir(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// hasLoopback says whether the plugin loopback is in one of the directories.
func hasLoopback(binDirs []string) bool {
	return slices.ContainsFunc(binDirs, func(dir string) bool {
		info, err := os.Stat(filepath.Join(dir, "loopback"))
		return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
	})
}
