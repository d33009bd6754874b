package node

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The default paths that a node uses, as seen inside; see Node.Path.
const (
	ConfDir          = "/etc/cni/net.d"
	BinDir           = "/opt/cni/bin"
	CrinetdSocket    = "/run/crinet/cri.sock"
	ContainerdSocket = "/run/containerd/containerd.sock"
)

// Options are the choices that Start has.
type Options struct {
	// Keep lets the node live on when the process that started it ends. Remove
	// ends it.
	Keep bool
	// ContainerdConfig is TOML that is added to containerd's configuration,
	// such as the table of one more runtime handler.
	ContainerdConfig string
	// RuntimeConfDir is containerd's own CNI conf dir; ConfDir if empty.
	RuntimeConfDir string
	// ContainerdCNI is TOML that is added to the CNI settings of containerd.
	ContainerdCNI string
	// Containerd is the containerd that the node runs.
	Containerd Containerd
	// Beside is a node whose outside this one shares: both are on one network,
	// and this one has the next address. It must live longer than this one is
	// used.
	Beside *Node
	// Environment is more environment of the daemons and commands in the node.
	Environment []string
	// Supervise has containerd started again when it ends by itself, as a
	// service manager does.
	Supervise bool
}

// Node is one running node. Its methods can be used at the same time, but for
// those that start, stop or close something.
type Node struct {
	*Place         // the node's own namespaces
	Outside *Place // what is beyond the uplink

	kit     *Kit
	options Options
	dir     string
	init    *exec.Cmd
	ended   chan struct{} // closed when process 1 has ended

	containerd, crinetd *daemon
	services            []*daemon    // all that Service.Start started; guarded by mu
	number              int          // of the nodes that came before on the same outside
	holder              *daemon      // keeps the outside's network when this process ends
	held                *heldSockets // nil: crinetd makes its sockets itself
	crinetDir           string       // folder of crinet's programs; empty: the kit's
	imported            bool         // the images are in containerd's store
	cri                 *Client      // of containerd

	mu      sync.Mutex
	clients []io.Closer
}

// Start starts a node without any daemon; its uplink is up, its bin dir holds
// the reference plugins, its conf dir is empty. The caller closes it.
func (k *Kit) Start(ctx context.Context, options Options) (_ *Node, err error) {
	options.Containerd = cmp.Or(options.Containerd, Containerd24)
	n := &Node{kit: k, options: options}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start a node: %w", err), n.Close())
		}
	}()
	if n.dir, err = os.MkdirTemp("", nodePrefix+"*"); err != nil {
		return nil, fmt.Errorf("make its directory: %w", err)
	}
	if err := os.Mkdir(n.logDir(), 0o755); err != nil {
		return nil, fmt.Errorf("make its log directory: %w", err)
	}
	if options.Beside != nil {
		err = n.shareOutside(options.Beside)
	} else {
		n.Outside, err = newNetwork("outside")
	}
	if err != nil {
		return nil, err
	}
	if err := n.startInit(ctx); err != nil {
		return nil, err
	}
	if err := n.openNamespaces(); err != nil {
		return nil, err
	}
	if err := n.connect(); err != nil {
		return nil, err
	}
	if options.Keep {
		n.holder, err = startDaemon(n.Outside, "outside", n.logFile("outside"), k.Program("testimage"), "pause")
		if err != nil {
			return nil, err
		}
	}
	return n, n.fillDirs()
}

// startInit starts process 1 in new namespaces and waits for its mounts.
func (n *Node) startInit(ctx context.Context) error {
	args := []string{"-dir", n.dir}
	if n.options.Keep {
		args = append(args, "-keep")
	}
	n.init = exec.Command(n.kit.Program("nodeinit"), args...)
	n.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		Setsid:     true,
	}
	// Held open, and closed by the end of this process: see nodeinit.
	stdin, err := n.init.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := n.init.StdoutPipe()
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	n.init.Stderr = &stderr
	if n.options.Keep {
		// A pipe would break with the end of this process.
		n.init.Stderr = nil
	}
	if err := n.init.Start(); err != nil {
		n.init = nil
		return fmt.Errorf("make its namespaces: %w", err)
	}
	abandon := context.AfterFunc(ctx, func() { _ = n.init.Process.Kill() })
	line, readErr := bufio.NewReader(stdout).ReadString('\n')
	abandon()
	n.ended = make(chan struct{})
	go func() {
		// Killed by Close as a rule: how it ended is of no interest.
		_ = n.init.Wait()
		_ = stdin.Close()
		close(n.ended)
	}()
	if line != "ready\n" {
		<-n.ended
		return fmt.Errorf("mount its file system: %w\n%s", errors.Join(readErr, ctx.Err()), stderr.String())
	}
	return setOwner(n.dir, n.init.Process.Pid)
}

func (n *Node) openNamespaces() error {
	path := n.kit.tools + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if n.options.Containerd != Containerd24 {
		path = n.kit.containerd(n.options.Containerd) + ":" + path
	}
	n.Place = &Place{name: "node", path: path, env: n.options.Environment}
	for name, file := range map[string]**namespace{"net": &n.net, "mnt": &n.mnt, "pid": &n.pid} {
		ns, err := openNamespace(fmt.Sprintf("/proc/%d/ns/%s", n.init.Process.Pid, name))
		if err != nil {
			return fmt.Errorf("open its namespaces: %w", err)
		}
		*file = ns
	}
	// Commands outside end with the node: all but the network is the node's.
	n.Outside.path = path
	for _, ns := range []struct{ from, to **namespace }{{&n.mnt, &n.Outside.mnt}, {&n.pid, &n.Outside.pid}} {
		var err error
		if *ns.to, err = (*ns.from).again(); err != nil {
			return fmt.Errorf("open its namespaces: %w", err)
		}
	}
	return nil
}

// fillDirs makes the conf dir and puts the reference plugins into the bin dir.
func (n *Node) fillDirs() error {
	for _, dir := range []string{ConfDir, BinDir} {
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	plugins, err := os.ReadDir(n.kit.Tool("cni"))
	if err != nil {
		return fmt.Errorf("list the plugins: %w", err)
	}
	for _, plugin := range plugins {
		if err := n.InstallPlugin(plugin.Name(), n.kit.Tool("cni/"+plugin.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Environment adds to the environment of the daemons and commands that are started from
// now on.
func (n *Node) Environment(more ...string) { n.env = append(n.env, more...) }

// InstallPlugin makes the program at path known under name in the bin dir, in the
// place of what is there.
func (n *Node) InstallPlugin(name, path string) error {
	link := n.Path(BinDir + "/" + name)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("install plugin %s: %w", name, err)
	}
	if err := os.Symlink(path, link); err != nil {
		return fmt.Errorf("install plugin %s: %w", name, err)
	}
	return nil
}

// WriteConf writes a file of the conf dir, in one step.
func (n *Node) WriteConf(name, content string) error {
	return n.WriteFile(ConfDir+"/"+name, content)
}

// WriteFile writes a file of the node, in one step, and makes its folder.
func (n *Node) WriteFile(name, content string) error {
	path := n.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	temp := filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
	if err := os.WriteFile(temp, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(temp, path)
}

// Kit is what the node was made of.
func (n *Node) Kit() *Kit { return n.kit }

// Dir is the node's directory on the machine. It holds the logs, in log, and
// what the node wrote, in root.
func (n *Node) Dir() string { return n.dir }

// PID is the node's process 1, as the machine counts.
func (n *Node) PID() int { return n.init.Process.Pid }

// Path says where a file of the node is to be found from outside. It is valid
// while the node runs. Absolute symbolic links lead astray.
func (n *Node) Path(inside string) string { return fmt.Sprintf("/proc/%d/root%s", n.PID(), inside) }

func (n *Node) logDir() string               { return filepath.Join(n.dir, "log") }
func (n *Node) logFile(daemon string) string { return filepath.Join(n.logDir(), daemon+".log") }
func (n *Node) cgroupParent() string         { return "/" + filepath.Base(n.dir) }

// Log returns all that a daemon (containerd or crinetd) has written.
func (n *Node) Log(daemon string) (string, error) {
	text, err := os.ReadFile(n.logFile(daemon))
	return string(text), err
}

// LogTails returns the ends of all logs, for the output of a test that failed.
func (n *Node) LogTails(lines int) string {
	var b strings.Builder
	logs, _ := filepath.Glob(n.logFile("*")) // the pattern is well formed
	for _, log := range logs {
		b.WriteString(tail(log, lines))
	}
	return b.String()
}

// Close ends everything in the node and removes it from the machine. It can be
// called again, and on a node that was only half started.
func (n *Node) Close() error {
	n.mu.Lock()
	var errs []error
	for _, c := range n.clients {
		errs = append(errs, c.Close())
	}
	n.clients = nil
	n.mu.Unlock()

	if n.ended != nil {
		if err := n.init.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("end the node: %w", err))
		}
		<-n.ended
		n.ended = nil
	}
	for _, d := range append(n.services, n.containerd, n.crinetd, n.holder) {
		if d != nil {
			<-d.done
		}
	}
	n.containerd, n.crinetd, n.holder, n.services = nil, nil, nil, nil
	errs = append(errs, n.held.close())
	n.held = nil
	for _, p := range []*Place{n.Place, n.Outside} {
		if p != nil {
			errs = append(errs, p.close())
		}
	}
	n.Place, n.Outside = nil, nil
	if n.dir != "" {
		errs = append(errs, removeRemains(n.dir))
	}
	n.dir = ""
	return errors.Join(errs...)
}

// Remove ends and removes a node that was started with Keep, by its directory.
func Remove(dir string) error {
	pid, running, err := owner(dir)
	if err != nil {
		return fmt.Errorf("%s is no node's directory: %w", dir, err)
	}
	for deadline := time.Now().Add(stopTimeout); running; time.Sleep(pollEvery) {
		if time.Now().After(deadline) {
			return fmt.Errorf("the node's process 1 (pid %d) does not end", pid)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the node's process 1 (pid %d): %w", pid, err)
		}
		if _, running, err = owner(dir); err != nil {
			return err
		}
	}
	return removeRemains(dir)
}

// removeRemains removes what a node that has ended left on the machine.
func removeRemains(dir string) error {
	if err := removeCgroups(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the node's directory: %w", err)
	}
	return nil
}
