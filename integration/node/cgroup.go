package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where the machine's control groups are, of both versions.
const cgroupRoot = "/sys/fs/cgroup"

// removeCgroups removes the control groups of the node with that directory: the
// parent of the pods that PodConfig described, and those of containers that
// named no parent, by their ids. All processes in them have ended.
func removeCgroups(dir string) error {
	names := []string{filepath.Base(dir)}
	for _, tasks := range []string{
		"root/run/containerd/io.containerd.runtime.v2.task/k8s.io",
		"root/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io",
	} {
		entries, err := os.ReadDir(filepath.Join(dir, tasks))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list the node's containers: %w", err)
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
	}
	var errs []error
	for _, name := range names {
		// In the root and one below it, for one hierarchy or several.
		for _, depth := range []string{"", "*", "*/*"} {
			groups, err := filepath.Glob(filepath.Join(cgroupRoot, depth, name))
			if err != nil {
				return fmt.Errorf("find the control groups of %s: %w", name, err)
			}
			for _, group := range groups {
				errs = append(errs, removeCgroup(group))
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup removes a control group and those below it.
func removeCgroup(group string) error {
	entries, err := os.ReadDir(group)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list control group %s: %w", group, err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeCgroup(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	deadline := time.Now().Add(stopTimeout)
	for {
		err := unix.Rmdir(group)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		// Busy for the moment between a process's death and its last trace.
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", group, err)
		}
		time.Sleep(pollEvery)
	}
}
