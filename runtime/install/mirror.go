package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/internal/dirs"
)

// Mirror is what crinetd keeps at the runtime under noop: nothing of crinet's,
// and, where the runtime has conf dirs of its own, copies of the files in
// --cni-conf-dir, so that the runtime networks its pods with them. It is used
// from one goroutine.
type Mirror struct {
	config  Config
	log     *slog.Logger
	failure failureLog
	cleaned []string // conf dirs that hold no unfinished files of an earlier run
}

// NewMirror returns a mirror. Nothing happens before Keep or Run.
func NewMirror(c Config) *Mirror { return &Mirror{config: c, log: c.Log} }

// Run keeps the copies until ctx ends.
func (m *Mirror) Run(ctx context.Context) {
	m.Keep()
	for backoff.Sleep(ctx, keepInterval) {
		m.Keep()
	}
}

// Keep removes crinet's files and makes the copies equal to their originals. A
// failure is logged when it begins or changes, and is tried again with the next
// call.
func (m *Mirror) Keep() {
	confDirs, binDir, _ := m.config.where(m.config.Runtime.Last().Facts)
	var errs []error
	for _, dir := range confDirs { // none while the runtime has not answered
		// The copies first, so that the conf dir is never without a configuration.
		if !sameDir(dir, m.config.NetworkConfDir) {
			errs = append(errs, m.copyAll(dir))
		}
		if !slices.Contains(m.cleaned, dir) {
			m.cleaned = append(m.cleaned, dir)
			Installer{ConfDir: dir, BinDir: binDir}.removeUnfinished()
			dirs.RemoveUnfinished(filepath.Join(dir, manifestName))
		}
		removed, err := Installer{ConfDir: dir, BinDir: binDir}.Remove()
		if removed {
			m.log.Info("noop: crinet's CNI configuration is removed, the runtime uses its own", "dir", dir)
			m.config.Runtime.Wake()
		}
		errs = append(errs, err)
	}
	m.failure.tell(m.log, "noop: the runtime's CNI configuration is not as it should be; crinetd tries again", errors.Join(errs...))
}

// copyAll makes a runtime's conf dir hold copies of the originals and nothing
// else. A dir that holds files of somebody else is theirs and stays untouched.
func (m *Mirror) copyAll(dir string) error {
	wanted, err := readConfigurations(m.config.NetworkConfDir)
	if err != nil {
		return err
	}
	copies, err := readManifest(dir)
	if err != nil {
		return err
	}
	present, err := readConfigurations(dir)
	if err != nil {
		return err
	}
	for name := range present {
		if !slices.Contains(copies, name) {
			return nil
		}
	}
	stale := slices.DeleteFunc(slices.Clone(copies), func(name string) bool { _, ok := wanted[name]; return ok })
	if len(stale) == 0 && maps.EqualFunc(wanted, present, bytes.Equal) {
		return nil
	}
	if err := update(dir, wanted, copies, stale); err != nil {
		return fmt.Errorf("copy the CNI configurations of %s: %w", m.config.NetworkConfDir, err)
	}
	m.log.Info("noop: the runtime's conf dir holds copies of the node's CNI configurations", "from", m.config.NetworkConfDir, "to", dir, "files", len(wanted))
	m.config.Runtime.Wake()
	return nil
}
