package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/journal"
)

// orphanTimeout bounds the wait for the end of plugins that an earlier crinetd
// left running.
const orphanTimeout = 2 * time.Second

// runner runs the plugins of chains.
type runner struct {
	*pluginexec.Exec
	mark string
}

// newRunner makes a runner whose plugins carry a mark that belongs to the state
// dir: what the journal in it holds is what they work on.
func newRunner(stateDir string) (*runner, error) {
	var stat syscall.Stat_t
	if err := syscall.Stat(stateDir, &stat); err != nil {
		return nil, fmt.Errorf("--state-dir: %w", &os.PathError{Op: "stat", Path: stateDir, Err: err})
	}
	mark := fmt.Sprintf("CRINETD_STATE=%d:%d", stat.Dev, stat.Ino)
	return &runner{Exec: pluginexec.New(pluginexec.Config{Mark: mark}), mark: mark}, nil
}

// Run runs a plugin.
func (r *runner) Run(ctx context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	what := verbOf(env) + " " + filepath.Base(path)
	failpoint.Hit("exec", what, failpoint.Before)
	defer failpoint.Hit("exec", what, failpoint.After)
	return r.Exec.Run(ctx, path, stdin, env)
}

// verbOf is the CNI verb in a plugin's environment.
func verbOf(env []string) string {
	for _, kv := range env {
		if verb, found := strings.CutPrefix(kv, "CNI_COMMAND="); found {
			return verb
		}
	}
	return ""
}

// endOrphans kills the plugins that an earlier crinetd left running when it
// died. What they were at is undone afterwards, and must not go on meanwhile.
func (d *daemon) endOrphans(ctx context.Context) error {
	records, err := d.journal.All()
	if err != nil {
		return err
	}
	attached := make(map[string]bool)
	for _, r := range records {
		if r.State == journal.Attached {
			attached[r.Attachment.ContainerID] = true
		}
	}
	ctx, cancel := context.WithTimeout(ctx, orphanTimeout)
	defer cancel()
	killed, err := pluginexec.KillOrphans(ctx, d.exec.mark, func(verb, id string) bool {
		return verb == "ADD" && attached[id] // a daemon that a plugin started for a pod
	})
	if len(killed) > 0 {
		d.log.Warn("plugins that an earlier crinetd had left running were killed", "processes", killed)
	}
	if err != nil {
		d.log.Error("what is undone now may be made again by a plugin that hangs; a reboot helps", "err", err)
	}
	return nil
}
