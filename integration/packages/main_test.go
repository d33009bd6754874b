// Package packages_test installs the packages in the tree of a fresh Debian, and holds
// docs/install.md to what it says.
package packages_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The versions of the packages that are built for the tests.
const (
	version = "0.2.0"
	later   = "0.3.0"
)

const root = "../.." // the checkout

var dist string // folder of what is built; made by TestMain, read by the tests

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		if os.Getenv("CRINET_TEST_REQUIRE_ALL") != "" {
			fmt.Fprintln(os.Stderr, "CRINET_TEST_REQUIRE_ALL is set, but the tests of packages need root")
			return 1
		}
		fmt.Fprintln(os.Stderr, "skipped: the tests of packages need root")
		return 0
	}
	var err error
	if dist, err = os.MkdirTemp("", "crinet-packages-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := 1
	if err := errors.Join(build(version, "release"), build(later, "packages")); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if err := os.RemoveAll(dist); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// build makes a target of this architecture in a version, in dist/VERSION.
func build(version, target string) error {
	return buildIn(filepath.Join(dist, version), version, target)
}

func buildIn(dir, version, target string) error {
	cmd := exec.CommandContext(context.Background(), "go", "run", "./packaging/build", "-version", version, "-arch", "amd64", "-out", dir, target)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s of %s: %w\n%s", target, version, err, out)
	}
	return nil
}

// machine is the tree of a fresh Debian, in which commands are run.
type machine struct {
	t   *testing.T
	dir string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{t: t, dir: t.TempDir()}
	out, err := exec.CommandContext(t.Context(), "tar", "--extract", "--file", root+"/.tools/debian-tree.tar", "--directory", m.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("run `integration/tools/build packages`: %v\n%s", err, out)
	}
	return m
}

// try runs a command of a shell in the tree, in namespaces of its own.
func (m *machine) try(command string) (string, error) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), "unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--kill-child",
		"sh", "-c", `mount -t proc proc "$1/proc" && exec chroot "$1" /bin/sh -ec "$2"`, "sh", m.dir, command)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// sh is try for a command that must succeed.
func (m *machine) sh(command string) string {
	m.t.Helper()
	out, err := m.try(command)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// put copies a built file into the tree's /root.
func (m *machine) put(version, pattern string) {
	m.t.Helper()
	found, err := filepath.Glob(filepath.Join(dist, version, pattern))
	if err != nil || len(found) != 1 {
		m.t.Fatalf("%s of %s: %q, %v", pattern, version, found, err)
	}
	text, err := os.ReadFile(found[0])
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "root", filepath.Base(found[0])), text, 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// write writes a file of the tree.
func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		m.t.Fatal(err)
	}
}

// read returns a file of the tree.
func (m *machine) read(name string) string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

// crinets lists what is called crinet in the tree, but for the packages themselves and
// dpkg's memory.
func (m *machine) crinets() []string {
	m.t.Helper()
	return strings.Fields(m.sh(`find / -xdev -path /proc -prune -o -path /root -prune -o -name '*crinet*' -print`))
}
