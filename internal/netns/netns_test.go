package netns

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A namespace is made and removed, twice each, and the process stays where it is.
func TestMakeAndRemove(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CRINET_TEST_REQUIRE_ALL") != "" {
			t.Fatal("the test needs root, for network namespaces")
		}
		t.Skip("the test needs root, for network namespaces")
	}
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "netns", "trial")
	for range 2 {
		if err := Make(path); err != nil {
			t.Fatal(err)
		}
		var at unix.Statfs_t
		if err := unix.Statfs(path, &at); err != nil || at.Type != unix.NSFS_MAGIC {
			t.Errorf("%s is no namespace: %v", path, err)
		}
		if err := Make(path); err == nil {
			t.Error("a second namespace is made in the place of the first")
			break
		}
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("after Remove: %v", err)
		}
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now != home {
		t.Errorf("the test is in %s now, it was in %s, %v", now, home, err)
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		t.Error(err)
	}
}

// A folder that cannot be made is named, and a file that is no mount is removed.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Make(filepath.Join(file, "trial")); err == nil {
		t.Error("a namespace is made below a file")
	}
	if os.Geteuid() != 0 {
		return
	}
	if err := Remove(file); err != nil {
		t.Error(err)
	}
}
