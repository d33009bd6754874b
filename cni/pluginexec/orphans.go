package pluginexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// orphanPoll is the pause before the processes are looked at again.
const orphanPoll = 5 * time.Millisecond

// KillOrphans kills the plugins, and what they started, that an earlier process
// ran with [Config.Mark] and left running when it died: what is to be undone
// must not be still in the making. Those that spare says yes to are left alone,
// such as a daemon that an ADD started for a pod that runs. It returns
// the command lines of the killed, and an error if some are still there when
// ctx ends: a process that hangs in the kernel does not die of SIGKILL.
//
// The caller must not have run anything with that mark itself.
func KillOrphans(ctx context.Context, mark string, spare func(verb, containerID string) bool) (killed []string, err error) {
	seen := make(map[int]bool)
	for {
		orphans, err := findMarked(mark, spare)
		if err != nil {
			return killed, fmt.Errorf("look for plugins of an earlier crinetd: %w", err)
		}
		if len(orphans) == 0 {
			return killed, nil
		}
		for _, o := range orphans {
			if !seen[o.Pid] {
				seen[o.Pid] = true
				killed = append(killed, commandLine(o.Pid))
			}
			o.kill()
		}
		select {
		case <-ctx.Done():
			return killed, fmt.Errorf("%d plugin processes of an earlier crinetd do not die: %w", len(orphans), context.Cause(ctx))
		case <-time.After(orphanPoll):
		}
	}
}

// orphan holds on to its process: the id cannot become another's.
type orphan struct{ *os.Process }

// kill kills the process and its group, which the plugin was made leader of. The
// errors say that it has ended.
func (o orphan) kill() {
	group, err := syscall.Getpgid(o.Pid)
	_ = o.Signal(syscall.SIGKILL)
	if err == nil && group > 1 && group != syscall.Getpgrp() {
		_ = syscall.Kill(-group, syscall.SIGKILL)
	}
	_ = o.Release()
}

// findMarked finds the processes with the mark in their environment.
func findMarked(mark string, spare func(verb, containerID string) bool) ([]orphan, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var orphans []orphan
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		process, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if verb, id, marked := readMark(pid, mark); marked && !spare(verb, id) {
			orphans = append(orphans, orphan{process})
			continue
		}
		_ = process.Release()
	}
	return orphans, nil
}

// readMark looks into a process's environment, and tells the verb and
// the container id that it works for, as far as it has them. One that cannot be read has ended, or is not ours.
func readMark(pid int, mark string) (verb, containerID string, marked bool) {
	environ, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil || !bytes.Contains(environ, []byte(mark)) {
		return "", "", false
	}
	for kv := range strings.SplitSeq(string(environ), "\x00") {
		if id, ok := strings.CutPrefix(kv, "CNI_CONTAINERID="); ok {
			containerID = id
		}
		if command, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			verb = command
		}
		marked = marked || kv == mark
	}
	return verb, containerID, marked
}

func commandLine(pid int) string {
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Sprintf("process %d (%v)", pid, err)
	}
	return fmt.Sprintf("process %d: %s", pid, strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
}
