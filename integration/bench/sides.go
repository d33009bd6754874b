package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/node"
)

// directRuntime is runc once more, with a CNI configuration of its own.
const directRuntime = `
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%[1]s]
    runtime_type = "io.containerd.runc.v2"
    cni_conf_dir = %[2]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%[1]s.options]
    BinaryName = %[3]q
`

// readyTimeout bounds the wait for a daemon to have its network.
const readyTimeout = time.Minute

// sides are the two ways to the same containerd.
type sides struct {
	node    *node.Node
	direct  *node.Client // containerd's socket
	through *node.Client // crinetd's
	used    string       // row of the network that crinetd was started for
}

// startSides starts the node with both copies of all networks. crinetd does not run
// yet, see use.
func startSides(ctx context.Context, kit *node.Kit) (s *sides, err error) {
	handlers := ""
	for _, w := range networks() {
		handlers += fmt.Sprintf(directRuntime, w.directHandler(), w.directConfDir(), kit.Tool("runc"))
	}
	n, err := kit.Start(ctx, node.Options{ContainerdConfig: handlers})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, errors.New(n.LogTails(20)), n.Close())
		}
	}()
	s = &sides{node: n}
	if err := ownPlugins(n); err != nil {
		return nil, err
	}
	for i, w := range networks() {
		if err := w.write(s, i); err != nil {
			return nil, err
		}
	}
	if err := n.StartContainerd(ctx); err != nil {
		return nil, err
	}
	if s.direct, err = n.Client(node.ContainerdSocket); err != nil {
		return nil, err
	}
	return s, nil
}

// asTheUnit runs crinetd with the priority that its unit gives it
// (packaging/crinetd.service).
var asTheUnit = []string{"nice", "-n", "-10"}

// use starts crinetd, or starts it again, for the network, and waits until both sides
// have it.
func (s *sides) use(ctx context.Context, w network) (err error) {
	if s.used == w.row {
		return nil
	}
	if s.used != "" {
		if err := s.node.StopCrinetd(); err != nil {
			return err
		}
	}
	flags := append([]string{"--network-plugin=" + w.throughName()}, w.flags...)
	if err := s.node.StartCrinetdBy(ctx, asTheUnit, flags...); err != nil {
		return err
	}
	s.used = w.row
	if s.through, err = s.node.Client(node.CrinetdSocket); err != nil {
		return err
	}
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if _, err := s.through.AwaitNetwork(ready, true); err != nil {
		return err
	}
	return s.awaitDirect(ready, w)
}

// awaitDirect waits until containerd has loaded the conf dir of the handler: its
// watcher reads it when it starts, which no condition shows.
func (s *sides) awaitDirect(ctx context.Context, w network) error {
	for {
		pod, _, err := runPod(ctx, s.node, s.direct, s.node.PodConfig("probe"), w.directHandler())
		if err == nil {
			_, err = s.direct.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd's own network: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// runPod runs a sandbox and says how long it took.
func runPod(ctx context.Context, n *node.Node, c *node.Client, config *runtimeapi.PodSandboxConfig, handler string) (string, time.Duration, error) {
	if err := os.MkdirAll(n.Path(config.GetLogDirectory()), 0o755); err != nil {
		return "", 0, fmt.Errorf("make the log directory of pod %s: %w", config.GetMetadata().GetName(), err)
	}
	start := time.Now()
	resp, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	took := time.Since(start)
	if err != nil {
		return "", 0, fmt.Errorf("run pod %s: %w", config.GetMetadata().GetName(), err)
	}
	return resp.GetPodSandboxId(), took, nil
}

// stopPod stops a sandbox and says how long it took.
func stopPod(ctx context.Context, c *node.Client, id string) (time.Duration, error) {
	start := time.Now()
	_, err := c.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	return time.Since(start), err
}

func removePod(ctx context.Context, c *node.Client, id string) error {
	_, err := c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}
