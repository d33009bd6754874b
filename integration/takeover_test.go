package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// takeoverPods is how many pods run when a node changes hands.
const takeoverPods = 20

// runtimeCache lists the entries of containerd's own libcni cache but those of
// loopback interfaces.
func (n *testNode) runtimeCache() []string {
	n.t.Helper()
	entries, err := os.ReadDir(n.Path("/var/lib/cni/results"))
	if os.IsNotExist(err) {
		return nil
	}
	n.ok(err)
	var names []string
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), "-lo") {
			names = append(names, entry.Name())
		}
	}
	return names
}

// startPods runs pods, each with a hostPort from 9000 on; the first two serve.
func (n *testNode) startPods(client *node.Client) []*node.Pod {
	n.t.Helper()
	pods := make([]*node.Pod, takeoverPods)
	run := func(i int) (err error) {
		name, port := fmt.Sprintf("pod-%d", i), int32(9000+i)
		pods[i], err = client.RunPod(n.ctx, n.withPorts(name, hostPort(tcp, "", port, 80)))
		return err
	}
	// portmap fails when two of it make its chains at once.
	n.ok(run(0))
	n.each(takeoverPods-1, 4, func(i int) error { return run(i + 1) })
	n.serveIn(pods[0], ":80", ":53")
	n.serveIn(pods[1], ":80", ":53")
	return pods
}

// takeoverLoad is traffic by a hostPort from outside, and between pods.
func (n *testNode) takeoverLoad(pods []*node.Pod) []*load {
	n.t.Helper()
	return []*load{
		n.startLoad(n.Outside, node.NodeIPv4, 9000, "pod-0"),
		n.startLoad(n.podPlace(pods[2]), n.address(pods[1]), 80, "pod-1"),
	}
}

// unbroken ends loads of which no fetch may have failed.
func (n *testNode) unbroken(what string, loads []*load) {
	n.t.Helper()
	for _, l := range loads {
		fetches := l.stop()
		if len(fetches) < 10 {
			n.t.Errorf("%s: only %d fetches", what, len(fetches))
		}
		for _, f := range fetches {
			if f.err != nil {
				n.t.Errorf("%s: a connection broke: %v", what, f.err)
				break
			}
		}
	}
}

// crinetd takes over a node with pods that containerd has networked: it shows
// them as adopted, breaks no connection, and removes each with the configuration
// that made it, portmap's rules included (review rows A6 and A8).
func TestTakeOver(t *testing.T) {
	t.Parallel()
	n := newSharedNode(t)
	n.ok(n.WriteConf("10-portmapped.conflist", portmapBridge))
	n.ok(n.StartContainerd(n.ctx))
	bare := n.client(node.ContainerdSocket)
	n.awaitNetwork(bare, true)
	pods := n.startPods(bare)
	loads := n.takeoverLoad(pods)

	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	unhurried := n.likeKubelet(client)
	n.eventually("all pods are adopted", func() bool {
		all, err := n.admin().Pods(n.ctx)
		n.ok(err)
		adopted := 0
		for _, p := range all {
			if p.Adopted && p.State == "attached" && p.Network == "portmapped" && len(p.Addresses) > 0 {
				adopted++
			}
		}
		return adopted == takeoverPods
	})
	// Their ports are theirs, by portmap's rules.
	n.refused(client, n.withPorts("rival", bothPorts("", 9000)...), "default/"+pods[0].Config.GetMetadata().GetName())
	unhurried()
	n.ok(n.KillCrinetd())
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	unhurried = n.likeKubelet(client)
	n.refused(client, n.withPorts("rival", bothPorts("", 9000)...), "default/"+pods[0].Config.GetMetadata().GetName())
	// Another network is what new pods get; the old ones leave by their own.
	n.ok(n.replaceConf("10-portmapped.conflist", dualBridge))
	n.awaitLive("another network", "dual", cleanTimeout)
	fresh := n.servePod(client, "fresh", bothPorts("", 9900)...)
	n.answers(n.Outside, node.NodeIPv4, 9900, "fresh")
	n.unbroken("while crinetd took over", loads)

	n.each(takeoverPods, 4, func(i int) error { return client.RemovePod(n.ctx, pods[i].ID) })
	for i := range takeoverPods {
		if rules := n.portmapRules(fmt.Sprint(9000 + i)); rules != "" {
			t.Errorf("portmap's rules for pod %d are left:\n%s", i, rules)
		}
	}
	unhurried()
	// The port is free for a pod that crinetd maps.
	again := n.servePod(client, "again", bothPorts("", 9000)...)
	n.answers(n.Outside, node.NodeIPv4, 9000, "again")
	n.ok(again.StopAndRemove(n.ctx))
	n.ok(fresh.StopAndRemove(n.ctx))
	if left := n.runtimeCache(); len(left) != 0 {
		t.Errorf("containerd's cache still holds %v", left)
	}
	n.noLeftovers()
}

// A node goes back to containerd: with crinetd under noop once and then away,
// containerd removes the pods that crinetd networked. The table of hostPorts goes
// with crinetd's noop start. What stays are crinetd's own state dir and one file a
// pod in containerd's cache, of the network that it knew as crinet.
func TestHandBack(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-portmapped.conflist", portmapBridge, cniFlags...)
	n.awaitNetwork(client, true)
	pods := n.startPods(client)
	inner := []*load{n.startLoad(n.podPlace(pods[2]), n.address(pods[1]), 80, "pod-1")}

	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, "--network-plugin=noop"))
	n.awaitNetwork(client, true)
	bare := n.client(node.ContainerdSocket)
	n.ok(n.StopCrinetd())
	n.awaitNetwork(bare, true)
	fresh := n.servePod(bare, "fresh", bothPorts("", 9900)...)
	n.answers(n.Outside, node.NodeIPv4, 9900, "fresh")
	n.unbroken("while crinetd left", inner)
	n.each(takeoverPods, 4, func(i int) error { return bare.RemovePod(n.ctx, pods[i].ID) })
	n.ok(fresh.StopAndRemove(n.ctx))
	if left, err := filepath.Glob(n.Path("/etc/cni/net.d/00-crinet*")); err != nil || len(left) != 0 {
		t.Errorf("crinet's configuration is left: %v, %v", left, err)
	}
	n.noTable("after noop")
	ctx, cancel := context.WithTimeout(n.ctx, cleanTimeout)
	defer cancel()
	n.awaitOK(cleanTimeout, func() error {
		left, err := n.Leftovers(ctx)
		left = slices.DeleteFunc(left, func(what string) bool {
			return strings.HasPrefix(what, "containerd result crinet-") || strings.HasPrefix(what, "crinetd result ")
		})
		if len(left) > 0 {
			err = errors.Join(err, fmt.Errorf("left behind:\n%s", strings.Join(left, "\n")))
		}
		return err
	})
}
