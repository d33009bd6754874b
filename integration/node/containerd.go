package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// readyTimeout is how long a daemon may take to come up.
const readyTimeout = 60 * time.Second

// Containerd is a release of containerd that a node can run.
type Containerd string

// The releases.
const (
	Containerd24     Containerd = "2.4"    // the newest one, which nodes have by default
	Containerd17     Containerd = "1.7"    // the newest 1.x
	ContainerdDebian Containerd = "debian" // 1.6 on Debian 12
)

// Containerds are all of them.
func Containerds() []Containerd {
	return []Containerd{Containerd24, Containerd17, ContainerdDebian}
}

const containerdConfigFile = "/etc/containerd/config.toml"

// containerdConfig departs from containerd's defaults only where the node can't
// count on the machine: no AppArmor, no raising of OOM scores, no plugin that
// looks for devices or other daemons.
const containerdConfig = `version = 3
disabled_plugins = ["io.containerd.nri.v1.nri"]

[plugins.'io.containerd.cri.v1.images']
  snapshotter = %[1]q
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %[2]q

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[3]q]
    conf_dir = %[4]q
%[6]s
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = %[5]q
`

// oldContainerdConfig is the same for containerd before 2.0.
const oldContainerdConfig = `version = 2
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp"]

[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = %[2]q
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = %[3]q
    conf_dir = %[4]q
%[6]s
  [plugins.'io.containerd.grpc.v1.cri'.containerd]
    snapshotter = %[1]q
    [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
        BinaryName = %[5]q
`

// snapshotter is overlayfs where the node's directory is not on an overlay
// itself, as it is when the tests run in a container.
func (n *Node) snapshotter() (string, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(n.dir, &stat); err != nil {
		return "", fmt.Errorf("look at the file system of %s: %w", n.dir, err)
	}
	if stat.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native", nil
	}
	return "overlayfs", nil
}

// RuntimeConfDir is where containerd looks for CNI configurations.
func (n *Node) RuntimeConfDir() string { return cmp.Or(n.options.RuntimeConfDir, ConfDir) }

// StartContainerd starts containerd and waits until it serves CRI. The first
// start imports the images. It need not have a network.
func (n *Node) StartContainerd(ctx context.Context) error {
	if n.containerd != nil && n.containerd.running() {
		return errors.New("containerd runs already")
	}
	snapshotter, err := n.snapshotter()
	if err != nil {
		return err
	}
	template, program := containerdConfig, filepath.Join(n.kit.containerd(n.options.Containerd), "containerd")
	if n.options.Containerd != Containerd24 {
		template = oldContainerdConfig
	}
	config := fmt.Sprintf(template, snapshotter, PauseImage, BinDir, n.RuntimeConfDir(), n.kit.Tool("runc"), n.options.ContainerdCNI)
	more := n.options.ContainerdConfig
	if n.options.Containerd != Containerd24 {
		more = strings.ReplaceAll(more, "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")
	}
	if err := n.WriteFile(containerdConfigFile, config+more); err != nil {
		return err
	}
	start := startDaemon
	if n.options.Supervise {
		start = superviseDaemon
	}
	n.containerd, err = start(n.Place, "containerd", n.logFile("containerd"), program, "--config", containerdConfigFile)
	if err != nil {
		return err
	}
	client, err := n.containerdClient()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := n.containerd.await(ctx, client.served); err != nil {
		return err
	}
	if n.imported {
		return nil
	}
	args := []string{"--namespace", "k8s.io", "images", "import", "--snapshotter", snapshotter, n.kit.archive()}
	if n.options.Containerd != ContainerdDebian { // whose ctr knows no other way
		args = slices.Insert(args, 4, "--local")
	}
	_, err = n.Run(ctx, "ctr", args...)
	n.imported = err == nil
	return err
}

// containerdClient is the node's own client of containerd, made once.
func (n *Node) containerdClient() (*Client, error) {
	if n.cri == nil {
		client, err := n.Client(ContainerdSocket)
		if err != nil {
			return nil, err
		}
		n.cri = client
	}
	return n.cri, nil
}

// ContainerdPID is the process id of the running containerd, as the machine counts.
func (n *Node) ContainerdPID() (int, error) {
	if n.containerd == nil || !n.containerd.running() {
		return 0, errors.New("containerd does not run")
	}
	return n.containerd.cmd.Process.Pid, nil
}

// SignalContainerd sends containerd a signal, such as SIGSTOP.
func (n *Node) SignalContainerd(signal os.Signal) error {
	if n.containerd == nil {
		return errors.New("send containerd a signal: it does not run")
	}
	return n.containerd.signal(signal)
}

// StopContainerd ends containerd as a service manager does; its pods live on.
func (n *Node) StopContainerd() error { return n.end(&n.containerd, (*daemon).stop) }

// KillContainerd kills containerd at once; its pods live on.
func (n *Node) KillContainerd() error { return n.end(&n.containerd, (*daemon).kill) }

func (n *Node) end(d **daemon, how func(*daemon) error) error {
	if *d == nil {
		return errors.New("stop a daemon of the node: it does not run")
	}
	err := how(*d)
	*d = nil
	return err
}

// served asks whether there is anybody who answers CRI.
func (c *Client) served(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := c.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	return err
}
