package cluster_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/cluster"
	"github.com/crinet-project/crinet/integration/node"
)

// agree waits until all that know the node's pods know the same: the API server,
// containerd, crinet's journal, host-local's files, the hostPort table and the
// kernel's devices and namespaces. It returns how many pods there are in networks
// of their own.
func (c *testCluster) agree(m *cluster.Member) (pods int) {
	c.t.Helper()
	c.await("all on "+m.Name+" agree on its pods", func() (err error) {
		pods, err = c.disagreement(m)
		return err
	})
	return pods
}

// disagreement looks once. The names of pods are namespace/name, and of their
// addresses only those of the first IP family count.
func (c *testCluster) disagreement(m *cluster.Member) (int, error) {
	api, err := c.apiPods(m)
	if err != nil {
		return 0, err
	}
	sandboxes, err := c.sandboxes(m)
	if err != nil {
		return 0, err
	}
	states, err := m.PodStates(c.ctx)
	if err != nil {
		return 0, err
	}
	journal, withPorts := make(map[string]string), make(map[string]string)
	for _, state := range states {
		name := state.Namespace + "/" + state.Name
		if journal[name] != "" || len(state.Addresses) == 0 {
			return 0, fmt.Errorf("crinet has %s twice, or without an address: %v", name, states)
		}
		address, _, _ := strings.Cut(state.Addresses[0], "/")
		journal[name] = address
		if len(state.HostPorts) > 0 {
			withPorts[name] = address
		}
	}
	mapped, err := c.mapped(m)
	if err != nil {
		return 0, err
	}
	for _, side := range []struct {
		name       string
		have, want any
		same       bool
	}{
		{"crinet's journal and the API server", journal, api, maps.Equal(journal, api)},
		{"containerd's sandboxes and the API server's pods", sandboxes, keys(api), slices.Equal(sandboxes, keys(api))},
		{"the hostPort table and crinet's journal", mapped, withPorts, maps.Equal(mapped, withPorts)},
	} {
		if !side.same {
			return 0, fmt.Errorf("%s differ: %v and %v", side.name, side.have, side.want)
		}
	}
	return len(api), c.leftBehind(m, slices.Sorted(maps.Values(journal)))
}

// podStates asks crinetctl for a node's pods, until it answers: it gives up soon,
// and the machine may have much else to do.
func (c *testCluster) podStates(m *cluster.Member) (states []node.PodState) {
	c.t.Helper()
	c.await("crinetctl answers on "+m.Name, func() (err error) {
		states, err = m.PodStates(c.ctx)
		return err
	})
	return states
}

func keys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// apiPods are the pods that the API server has for a node, in networks of their
// own, with their addresses.
func (c *testCluster) apiPods(m *cluster.Member) (map[string]string, error) {
	all, err := c.Pods(c.ctx, "")
	if err != nil {
		return nil, err
	}
	pods := make(map[string]string)
	for _, pod := range all {
		if pod.Spec.NodeName == m.Name && !pod.Spec.HostNetwork && pod.Status.Phase != "Succeeded" && pod.Status.Phase != "Failed" {
			pods[pod.Metadata.Namespace+"/"+pod.Metadata.Name] = pod.Status.PodIP
		}
	}
	return pods, nil
}

// sandboxes are containerd's running ones, in networks of their own.
func (c *testCluster) sandboxes(m *cluster.Member) ([]string, error) {
	client, err := m.Client(node.ContainerdSocket)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.ctx, awaitTimeout)
	defer cancel()
	resp, err := client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, sandbox := range resp.GetItems() {
		if sandbox.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
			continue
		}
		status, err := client.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox.GetId()})
		if err != nil {
			return nil, err
		}
		if status.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_POD {
			names = append(names, sandbox.GetMetadata().GetNamespace()+"/"+sandbox.GetMetadata().GetName())
		}
	}
	slices.Sort(names)
	return names, nil
}

// element is one of the table's mappings: the pod and its address.
var element = regexp.MustCompile(`comment "([^"]+)" : ([0-9a-f.:]+) \. `)

// mapped are the pods in the table of hostPorts, with their addresses.
func (c *testCluster) mapped(m *cluster.Member) (map[string]string, error) {
	table, err := m.Run(c.ctx, "nft", "list", "table", "inet", "crinet")
	if err != nil {
		return nil, err
	}
	pods := make(map[string]string)
	for _, match := range element.FindAllStringSubmatch(table, -1) {
		if c.isMain(match[2]) {
			pods[match[1]] = match[2]
		}
	}
	return pods, nil
}

// leftBehind compares what the kernel and host-local have with the pods' addresses.
func (c *testCluster) leftBehind(m *cluster.Member, addresses []string) error {
	var reserved []string
	networks, err := os.ReadDir(m.Path("/var/lib/cni/networks"))
	if err != nil {
		return err
	}
	for _, network := range networks {
		files, err := os.ReadDir(m.Path("/var/lib/cni/networks/" + network.Name()))
		if err != nil {
			return err
		}
		for _, file := range files {
			if c.isMain(file.Name()) {
				reserved = append(reserved, file.Name())
			}
		}
	}
	slices.Sort(reserved)
	if !slices.Equal(reserved, addresses) {
		return fmt.Errorf("host-local has reserved %v, pods have %v", reserved, addresses)
	}
	if err := c.namespaces(m, len(addresses)); err != nil {
		return err
	}
	veths := 0
	err = m.Do(func() error {
		handle, err := netlink.NewHandleAt(netns.None(), unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		links, err := handle.LinkList()
		for _, link := range links {
			if link.Type() == "veth" && link.Attrs().Name != node.Uplink {
				veths++
			}
		}
		return err
	})
	if err == nil && veths != len(addresses) {
		err = fmt.Errorf("there are %d veths for %d pods", veths, len(addresses))
	}
	return err
}

// namespaces compares the number of network namespaces with that of the pods.
// Killed between making one and storing its path, containerd forgets it
// (RunPodSandbox in its sandbox_run.go). Such a one has never been in a call to
// crinetd, and does not count.
func (c *testCluster) namespaces(m *cluster.Member, pods int) error {
	spaces, err := os.ReadDir(m.Path("/run/netns"))
	if err != nil || len(spaces) == pods {
		return err
	}
	log, err := m.Log("crinetd")
	if err != nil {
		return err
	}
	spaces = slices.DeleteFunc(spaces, func(space os.DirEntry) bool { return !strings.Contains(log, space.Name()) })
	if len(spaces) != pods {
		return fmt.Errorf("there are %d network namespaces for %d pods", len(spaces), pods)
	}
	return nil
}

// isMain says whether a text is an address of the cluster's first IP family.
func (c *testCluster) isMain(text string) bool {
	addr, err := netip.ParseAddr(text)
	return err == nil && addr.Is4() == (c.Main() == cluster.IPv4)
}
