package pluginexec

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/backoff"
)

// orphanPoll is the wait before KillOrphans looks at the processes again.
const orphanPoll = 5 * time.Millisecond

// StateMark returns a [Config.Mark] that belongs to a state dir: the plugins of a
// crinetd work on what the journal in its state dir holds.
func StateMark(dir string) (string, error) {
	var stat syscall.Stat_t
	if err := syscall.Stat(dir, &stat); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fmt.Sprintf("%s=%d:%d", wire.InsideVariable, stat.Dev, stat.Ino), nil
}

// KillOrphans kills the plugins that an earlier process ran with [Config.Mark]
// and left running when it died, with their process groups, so that what is
// undone now is not made again by them. It returns the command lines of the
// killed plugins, and an error if some are still there when ctx ends: a process
// that hangs in the kernel does not die of SIGKILL.
//
// It leaves alone what a plugin left behind on purpose, such as a dnsmasq that
// other pods use: a process with a session of its own, and one whose plugin has
// ended. It also leaves those alone for which spare returns true; spare gets
// the CNI_COMMAND and CNI_CONTAINERID that the process was started with.
//
// The caller must not have run anything with that mark itself.
func KillOrphans(ctx context.Context, mark string, spare func(verb, containerID string) bool) (killed []string, err error) {
	seen := make(map[int]bool)
	for {
		orphans, err := findOrphans(mark, spare)
		if err != nil {
			return killed, fmt.Errorf("look for plugins of an earlier crinetd: %w", err)
		}
		if len(orphans) == 0 {
			return killed, nil
		}
		for _, pid := range orphans {
			if !seen[pid] {
				seen[pid] = true
				killed = append(killed, commandLine(pid))
			}
			_ = syscall.Kill(-pid, syscall.SIGKILL) // an error means that the group has ended
		}
		if !backoff.Sleep(ctx, orphanPoll) {
			return killed, fmt.Errorf("%d plugin processes of an earlier crinetd do not die: %w", len(orphans), context.Cause(ctx))
		}
	}
}

// findOrphans returns the plugins with the mark in their environment. A plugin
// is the leader of its process group, but not of a session.
func findOrphans(mark string, spare func(verb, containerID string) bool) (pids []int, err error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		verb, id, marked := readMark(pid, mark)
		if !marked || spare(verb, id) {
			continue
		}
		group, groupErr := unix.Getpgid(pid)
		session, sessionErr := unix.Getsid(pid)
		if groupErr == nil && sessionErr == nil && group == pid && session != pid {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// readMark looks for the mark in a process's environment, and returns the verb
// and the container id that stand beside it. A process whose environment cannot
// be read, or is empty, has ended.
func readMark(pid int, mark string) (verb, containerID string, marked bool) {
	environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		return "", "", false
	}
	for kv := range strings.SplitSeq(string(environ), "\x00") {
		switch name, value, _ := strings.Cut(kv, "="); {
		case kv == mark:
			marked = true
		case name == "CNI_CONTAINERID":
			containerID = value
		case name == "CNI_COMMAND":
			verb = value
		}
	}
	return verb, containerID, marked
}

func commandLine(pid int) string {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return fmt.Sprintf("process %d (%v)", pid, err)
	}
	return fmt.Sprintf("process %d: %s", pid, strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
}
