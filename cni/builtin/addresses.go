package builtin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"golang.org/x/sys/unix"
)

// addresses is the address store of one network, locked: the reference plugin's files
// under its own lock, so that both can use them side by side.
type addresses struct {
	*disk.Store
	dir    string // of its files: one for each address, with the sandbox that has it
	lock   *os.File
	config *allocator.IPAMConfig
}

// Lock and Unlock do nothing: addresses is locked as long as it is open.
func (a *addresses) Lock() error   { return nil }
func (a *addresses) Unlock() error { return nil }

// openAddresses opens and locks the store that a configuration names.
func openAddresses(ctx context.Context, c *Call) (*addresses, error) {
	config, _, err := allocator.LoadIPAMConfig(c.Config, c.Args)
	if err != nil {
		return nil, err
	}
	store, err := disk.New(config.Name, config.DataDir)
	if err != nil {
		return nil, err
	}
	dir := config.DataDir
	if dir == "" {
		dir = defaultDataDir
	}
	a := &addresses{Store: store, dir: filepath.Join(dir, config.Name), config: config}
	if err := a.lockDir(ctx); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return a, nil
}

// defaultDataDir is package disk's, which does not export it.
const defaultDataDir = "/var/lib/cni/networks"

// lockDir takes the lock of the store's folder (flock(2)), at most until ctx ends.
func (a *addresses) lockDir(ctx context.Context) error {
	path := filepath.Join(a.dir, "lock")
	lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o750)
	if err != nil {
		return err
	}
	fd := int(lock.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		a.lock = lock
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- flock(fd) }()
	select {
	case err := <-done:
		if err != nil {
			return errors.Join(fmt.Errorf("lock %s: %w", path, err), lock.Close())
		}
		a.lock = lock
		return nil
	case <-ctx.Done():
		go func() { _ = errors.Join(<-done, lock.Close()) }() // a lock that comes late is given back
		return fmt.Errorf("lock %s, which another process holds: %w", path, context.Cause(ctx))
	}
}

// flock waits for a lock. Signals of the Go runtime interrupt it.
func flock(fd int) error {
	for {
		if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// close unlocks and closes the store. An error of close(2) changes nothing: nothing
// was written to these files.
func (a *addresses) close() {
	_ = a.lock.Close()
	_ = a.Close()
}

// maxHolder is more than a file can have that is of a container id and an interface, in
// bytes.
const maxHolder = 512

// of returns the names of the files that are of a sandbox's interface or, if there are
// none, of its container as older releases wrote them. Every ADD and DEL reads all
// files: those of 110 sandboxes in less than half of the time that package disk takes.
func (a *addresses) of(containerID, ifName string) ([]string, error) {
	dir, err := os.Open(a.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var ours, older []string
	text := make([]byte, maxHolder)
	for _, name := range all {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			continue // as package disk: what cannot be read is nobody's
		}
		n, _ := unix.Read(fd, text) // -1 for a folder
		_ = unix.Close(fd)
		switch string(bytes.TrimSpace(text[:max(n, 0)])) {
		case strings.TrimSpace(containerID) + disk.LineBreak + ifName:
			ours = append(ours, name)
		case strings.TrimSpace(containerID):
			older = append(older, name)
		}
	}
	if len(ours) > 0 {
		return ours, nil
	}
	return older, nil
}

// GetByID returns the addresses of a sandbox's interface, for package allocator.
func (a *addresses) GetByID(containerID, ifName string) (all []net.IP) {
	names, _ := a.of(containerID, ifName) // as package disk
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			all = append(all, ip)
		}
	}
	return all
}

// FreeBegun removes the files of addresses that host-local has made since a time and not
// written to: it was killed in between, or the power failed. config is that of the plugin
// that delegates to it. Nobody is between the two while the store is locked. Empty files
// that are older stay: somebody may keep an address for himself by one.
func FreeBegun(ctx context.Context, config []byte, since time.Time) error {
	a, err := openAddresses(ctx, &Call{Config: config})
	if err != nil {
		return fmt.Errorf("free what host-local had begun to reserve: %w", err)
	}
	defer a.close()
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !entry.Type().IsRegular() || net.ParseIP(entry.Name()) == nil {
			continue
		}
		info, err := entry.Info()
		if err != nil || info.Size() > 0 || info.ModTime().Before(since) {
			continue // an error: it was freed meanwhile
		}
		if err := os.Remove(filepath.Join(a.dir, entry.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("free an address that host-local had begun to reserve: %w", err)
		}
	}
	return nil
}

// release frees all addresses of a sandbox's interface.
func (a *addresses) release(c *Call) error {
	names, err := a.of(c.ContainerID, c.IfName)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(a.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("free an address: %w", err)
		}
	}
	return nil
}
