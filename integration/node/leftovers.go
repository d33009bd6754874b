package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Where pods leave traces in a node.
const (
	hostLocalDir    = "/var/lib/cni/networks"
	containerdCache = "/var/lib/cni/results"
	crinetdCache    = "/var/lib/crinet/cni/results"
	netnsDir        = "/run/netns"
)

// Leftovers lists what pods have in the node, or have left there: sandboxes
// known to containerd, reserved addresses, veths, network namespaces, cached
// results and running plugins. On a node without pods it is empty.
func (n *Node) Leftovers(ctx context.Context) ([]string, error) {
	var left []string
	var errs []error
	note := func(what string, names []string, err error) {
		for _, name := range names {
			left = append(left, what+" "+name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list %ss: %w", what, err))
		}
	}
	if n.containerd != nil {
		names, err := n.sandboxes(ctx)
		note("sandbox", names, err)
	}
	names, err := n.reservedAddresses()
	note("address", names, err)
	names, err = n.veths()
	note("veth", names, err)
	names, err = n.plugins()
	note("plugin", names, err)
	for what, dir := range map[string]string{
		"network namespace": netnsDir,
		"containerd result": containerdCache,
		"crinetd result":    crinetdCache,
	} {
		names, err := fileNames(n.Path(dir))
		note(what, names, err)
	}
	slices.Sort(left)
	return left, errors.Join(errs...)
}

// AwaitClean waits until nothing is left, and returns what is at the end of
// ctx. Some of it goes only a moment after the call that removes it.
func (n *Node) AwaitClean(ctx context.Context) ([]string, error) {
	for {
		left, err := n.Leftovers(ctx)
		if err != nil || len(left) == 0 {
			return left, err
		}
		select {
		case <-ctx.Done():
			return left, nil
		case <-time.After(5 * pollEvery):
		}
	}
}

func (n *Node) sandboxes(ctx context.Context) ([]string, error) {
	client, err := n.containerdClient()
	if err != nil {
		return nil, err
	}
	// The end of ctx is what AwaitClean reports leftovers at.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	resp, err := client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, sandbox := range resp.GetItems() {
		names = append(names, sandbox.GetMetadata().GetName()+" "+sandbox.GetState().String())
	}
	return names, nil
}

// reservedAddresses lists the files that host-local names after addresses, with whose
// they are.
func (n *Node) reservedAddresses() ([]string, error) {
	networks, err := fileNames(n.Path(hostLocalDir))
	if err != nil {
		return nil, err
	}
	var addrs []string
	for _, network := range networks {
		files, err := fileNames(filepath.Join(n.Path(hostLocalDir), network))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if _, err := netip.ParseAddr(file); err == nil {
				text, _ := os.ReadFile(filepath.Join(n.Path(hostLocalDir), network, file)) // freed meanwhile
				holder, _, _ := strings.Cut(string(text), "\n")
				addrs = append(addrs, fmt.Sprintf("%s of %s, held by %q", file, network, strings.TrimSpace(holder)))
			}
		}
	}
	return addrs, nil
}

// veths lists the devices that pods hang on.
func (n *Node) veths() ([]string, error) {
	handle, err := netlink.NewHandleAt(netns.NsHandle(n.net.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	var links []netlink.Link
	for range 10 { // it changes while it is read, when many pods go
		if links, err = handle.LinkList(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, link := range links {
		if name := link.Attrs().Name; link.Type() == "veth" && name != Uplink {
			names = append(names, name)
		}
	}
	return names, nil
}

// plugins lists the running processes whose program is in the bin dir.
func (n *Node) plugins() ([]string, error) {
	processes, err := filepath.Glob(n.Path("/proc/[0-9]*"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, process := range processes {
		// A process that has ended meanwhile has no command line.
		line, err := os.ReadFile(process + "/cmdline")
		if err != nil {
			continue
		}
		program, _, _ := strings.Cut(string(line), "\x00")
		if strings.HasPrefix(program, BinDir+"/") {
			names = append(names, program)
		}
	}
	return names, nil
}

// fileNames lists a directory; one that is missing is empty.
func fileNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, nil
}
