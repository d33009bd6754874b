package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// overlaid are the directories whose contents the node sees but never changes
// on the machine: writes go to a tmpfs.
var overlaid = [...]string{"/etc", "/opt", "/var/lib"}

// bound are the directories that the node has for itself. They lie under the
// node's directory on a real file system, because containerd's overlayfs
// snapshotter can't stand on an overlay and because they should be there to
// look at after a failure.
var bound = [...]string{
	"/run",
	"/etc/cni",
	"/opt/cni",
	"/opt/containerd",
	"/var/lib/cni",
	"/var/lib/containerd",
	"/var/lib/crinet",
	"/var/lib/kubelet",
	"/var/log",
}

// resolvConf keeps pods from the machine's name servers; the address is one of
// RFC 5737's for documentation.
const resolvConf = "nameserver 198.51.100.1\n"

// mountNode gives the calling process's mount namespace the node's file system.
func mountNode(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep the node's mounts from the machine: %w", err)
	}
	if err := mountSys(dir); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc of the node's process namespace: %w", err)
	}
	for _, target := range overlaid {
		if err := mountOverlay(dir, target); err != nil {
			return err
		}
	}
	for _, target := range bound {
		if err := mountBound(dir, target); err != nil {
			return err
		}
	}
	// On many machines resolv.conf is a link into /run, which the node has not.
	if err := os.Remove("/etc/resolv.conf"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace the node's resolv.conf: %w", err)
	}
	if err := os.WriteFile("/etc/resolv.conf", []byte(resolvConf), 0o644); err != nil {
		return fmt.Errorf("replace the node's resolv.conf: %w", err)
	}
	return nil
}

// mountSys mounts a sysfs that shows the node's network devices and has the
// machine's control groups where they were.
func mountSys(dir string) error {
	sys := filepath.Join(dir, "sys")
	if err := os.MkdirAll(sys, 0o755); err != nil {
		return fmt.Errorf("make the mount point of sysfs: %w", err)
	}
	if err := unix.Mount("sysfs", sys, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount sysfs of the node's network namespace: %w", err)
	}
	const cgroups = "/sys/fs/cgroup"
	if err := unix.Mount(cgroups, dir+cgroups, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("carry %s over to the node's sysfs: %w", cgroups, err)
	}
	if err := unix.Mount(sys, "/sys", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the node's sysfs to /sys: %w", err)
	}
	return nil
}

// mountOverlay puts a writable layer over target.
func mountOverlay(dir, target string) error {
	scratch := filepath.Join(dir, "overlay", target)
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return fmt.Errorf("make the mount point for the layer over %s: %w", target, err)
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the tmpfs for the layer over %s: %w", target, err)
	}
	upper, work := filepath.Join(scratch, "upper"), filepath.Join(scratch, "work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("make the layer over %s: %w", target, err)
		}
	}
	options := "lowerdir=" + target + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount the layer over %s: %w", target, err)
	}
	return nil
}

// mountBound binds dir/root/target, made if missing, over target.
func mountBound(dir, target string) error {
	source := filepath.Join(dir, "root", target)
	for _, d := range []string{source, target} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make the node's own %s: %w", target, err)
		}
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the node's own %s: %w", target, err)
	}
	return nil
}
