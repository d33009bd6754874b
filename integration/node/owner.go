package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Directories of nodes and kits begin like this, in the machine's directory for
// temporary files.
const (
	nodePrefix = "crinet-node-"
	kitPrefix  = "crinet-kit-"
)

// ownerFile of a directory says which process it belongs to, by process id and
// start time.
const ownerFile = "owner.pid"

func setOwner(dir string, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("note the owner of %s: %w", dir, err)
	}
	return os.WriteFile(filepath.Join(dir, ownerFile), fmt.Appendf(nil, "%d %s\n", pid, started), 0o600)
}

// owner tells whose directory it is and whether that process still runs.
func owner(dir string) (pid int, running bool, err error) {
	text, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return 0, false, err
	}
	var started string
	if _, err := fmt.Sscan(string(text), &pid, &started); err != nil {
		return 0, false, fmt.Errorf("read the owner of %s: %w", dir, err)
	}
	now, err := startTime(pid)
	if errors.Is(err, fs.ErrNotExist) {
		return pid, false, nil
	}
	return pid, err == nil && now == started, err
}

// sweep removes what earlier runs have left that were killed.
func sweep() error {
	var errs []error
	for prefix, remove := range map[string]func(string) error{nodePrefix: removeRemains, kitPrefix: os.RemoveAll} {
		dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
		if err != nil {
			return fmt.Errorf("find what earlier runs left: %w", err)
		}
		for _, dir := range dirs {
			// A directory without an owner belongs to another run that just makes or removes it.
			if _, running, err := owner(dir); err == nil && !running {
				errs = append(errs, remove(dir))
			}
		}
	}
	return errors.Join(errs...)
}

// startTime tells a process from a later one with the same id: field 22 of
// proc_pid_stat(5), counted behind the command's name in brackets. A zombie
// counts as gone.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	const state, started = 0, 22 - 3 // the state is field 3
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= started {
		return "", fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	if fields[state] == "Z" {
		return "", fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	return fields[started], nil
}
