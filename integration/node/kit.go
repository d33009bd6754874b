package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const modulePath = "github.com/crinet-project/crinet"

// tools are what `make tools` installs and every node needs.
var tools = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "crictl", "cni/bridge", "cni/host-local", "cni/loopback", "cni/flannel"}

// helpers are the programs of this module that every node needs, by the names
// of their packages' folders.
var helpers = []string{"integration/nodeinit", "integration/testimage", "integration/testplugin"}

// Kit is what nodes are made of: the tools, the helper programs and the images.
// It belongs to one process, which closes it at its end.
type Kit struct {
	root  string // the checkout
	tools string // folder of the tools
	dir   string // what was built, and the image archive
}

// NewKit finds the tools, builds the helper programs and makes the images. It
// takes a second, or half a minute when nothing was built before. The error
// says what is missing and how to get it.
func NewKit(ctx context.Context) (*Kit, error) {
	if unix.Geteuid() != 0 {
		return nil, errors.New("a node needs root: network, mount and process namespaces are made")
	}
	root, err := checkout()
	if err != nil {
		return nil, err
	}
	k := &Kit{root: root, tools: filepath.Join(root, ".tools", "bin")}
	for _, tool := range tools {
		if _, err := os.Stat(filepath.Join(k.tools, tool)); err != nil {
			return nil, fmt.Errorf("the test node's tools are missing, run `make tools`: %w", err)
		}
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	if k.dir, err = os.MkdirTemp("", kitPrefix+"*"); err != nil {
		return nil, fmt.Errorf("make a directory for the test programs: %w", err)
	}
	if err := errors.Join(setOwner(k.dir, os.Getpid()), k.build(ctx)); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Close removes what the kit has built. Nodes must be closed before.
func (k *Kit) Close() error { return os.RemoveAll(k.dir) }

// Root is the checkout's folder.
func (k *Kit) Root() string { return k.root }

// Program is the path of a program that the kit has built, such as testplugin,
// or that Build was asked for.
func (k *Kit) Program(name string) string { return filepath.Join(k.dir, name) }

// Tool is the path of an installed tool, such as crictl or cni/bridge.
func (k *Kit) Tool(name string) string { return filepath.Join(k.tools, name) }

// containerd is the folder of a containerd, its shim and, if it needs one of its
// own, its ctr.
func (k *Kit) containerd(which Containerd) string {
	if which == Containerd24 {
		return k.tools
	}
	return filepath.Join(filepath.Dir(k.tools), "containerd-"+string(which))
}

func (k *Kit) build(ctx context.Context) error {
	if err := k.Build(ctx, []string{"CGO_ENABLED=0"}, []string{"-ldflags=-s -w"}, helpers...); err != nil {
		return err
	}
	nodetest, err := os.ReadFile(k.Program("testimage"))
	if err != nil {
		return fmt.Errorf("read the test image's program: %w", err)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is missing, run `make tools`: %w", err)
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("read busybox: %w", err)
	}
	return writeImages(k.archive(), standardImages(nodetest, shell))
}

func (k *Kit) archive() string { return filepath.Join(k.dir, "images.tar") }

// Build builds main packages of the checkout, given by their folders, with more
// environment and flags for go build. Program tells where they are.
func (k *Kit) Build(ctx context.Context, env, flags []string, folders ...string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-o", k.dir + "/"}, flags...)
	for _, folder := range folders {
		args = append(args, "./"+folder)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = k.root
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(folders, " "), err, out)
	}
	return nil
}

// checkout finds the module's folder at or above the working directory.
func checkout() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module "+modulePath+"\n") {
			return dir, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find the checkout: %w", err)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not in a checkout of %s", start, modulePath)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
