// Package netns makes network namespaces that outlive the process: each is bound
// to a file, as those of containers are, so that programs in other PID namespaces
// find it too.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Make makes an empty network namespace and binds it to a new file at path, whose
// folder it makes as well. After an error nothing is left but the folder.
func Make(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	made := make(chan error, 1)
	go func() { made <- bindNew(path) }()
	if err := <-made; err != nil {
		return errors.Join(fmt.Errorf("make a network namespace at %s: %w", path, err), Remove(path))
	}
	return nil
}

// bindNew moves its thread into a new network namespace, binds that to path, and
// goes back. A thread that cannot go back ends with its goroutine.
func bindNew(path string) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("unshare: %w", err)
	}
	bindErr := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		return errors.Join(bindErr, fmt.Errorf("go back to the node's namespace: %w", err))
	}
	runtime.UnlockOSThread()
	if bindErr != nil {
		return fmt.Errorf("bind mount: %w", bindErr)
	}
	return nil
}

// Remove removes the file at path and the namespace bound to it, with all
// interfaces in it. It does nothing if there is no such file.
func Remove(path string) error {
	// EINVAL says that nothing is mounted there.
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}
