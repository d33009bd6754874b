// Command demo shows crinetd at work: it starts a node with containerd in
// namespaces of its own, gives it a bridge network, runs a pod with a web server
// through crictl and crinetd, fetches a page from it and prints how long the
// steps of the pod's start took. Then it removes all of it. Run it by
// `sudo make demo`.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/integration/command"
	"github.com/crinet-project/crinet/integration/node"
)

// timeout bounds the whole demo.
const timeout = 5 * time.Minute

// bridgeConf is the network of the node's pods.
const bridgeConf = `{
	"cniVersion": "0.3.0",
	"name": "mynet",
	"type": "bridge",
	"bridge": "mynet0",
	"isDefaultGateway": true,
	"forceAddress": false,
	"ipMasq": true,
	"hairpinMode": true,
	"ipam": {
		"type": "host-local",
		"subnet": "10.10.0.0/16"
	}
}
`

// What the steps of a pod's start are, by name.
var meaning = map[string]string{
	"create": "the sandbox is asked for and checked, containerd makes it",
	"netns":  "its network namespace is there",
	"plugin": "the network's plugins have run",
	"start":  "the sandbox's process runs",
}

func main() { command.Main("demo", run) }

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	keep := flags.Bool("keep", false, "leave the node running")
	remove := flags.String("remove", "", "remove the node with this directory, which was kept")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *remove != "" {
		return node.Remove(*remove)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	fmt.Fprintln(out, "Building the test images and helper programs ...")
	kit, err := node.NewKit(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kit.Close()) }()
	if err := kit.BuildCrinet(ctx, false); err != nil {
		return err
	}
	fmt.Fprintln(out, "Starting a node in namespaces of its own, with containerd and crinetd ...")
	n, err := kit.Start(ctx, node.Options{Keep: *keep})
	if err != nil {
		return err
	}
	if err := show(ctx, n, out, *keep); err != nil {
		return errors.Join(err, errors.New(n.LogTails(20)), n.Close())
	}
	if *keep {
		printHints(out, n)
		return nil
	}
	if err := n.Close(); err != nil {
		return err
	}
	fmt.Fprintln(out, "The node is removed: nothing of it is left on this machine.")
	return nil
}

// show runs the pod, prints what there is to see and, unless told to keep it,
// removes the pod.
func show(ctx context.Context, n *node.Node, out io.Writer, keep bool) error {
	if err := startNode(ctx, n); err != nil {
		return err
	}
	fmt.Fprintln(out, "Running a pod with a web server through crictl and crinetd ...")
	pod, err := runPod(ctx, n)
	if err != nil {
		return err
	}
	state, err := stateOf(ctx, n, pod)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe pod's start, step by step:\n")
	for i, step := range state.Steps {
		fmt.Fprintf(out, "  %d %-7s %s %9.3f ms  %s\n", i+1, step.Step,
			step.Start.Format("15:04:05.000"), step.Seconds*1000, meaning[step.Step])
	}
	if len(state.Addresses) == 0 {
		return fmt.Errorf("pod %s has no address", state.Name)
	}
	address, _, _ := strings.Cut(state.Addresses[0], "/")
	page, err := n.AwaitGet(ctx, "http://"+address+"/")
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nIts address on the network %s is %s. http://%s/ says, to the node:\n  %s\n",
		state.Network, address, address, page)
	if keep {
		return nil
	}
	fmt.Fprintln(out, "Removing the pod ...")
	if _, err := n.Crictl(ctx, node.CrinetdSocket, "rmp", "--force", pod); err != nil {
		return err
	}
	left, err := n.AwaitClean(ctx)
	if err == nil && len(left) != 0 {
		err = fmt.Errorf("the pod left behind: %s", strings.Join(left, ", "))
	}
	return err
}

func startNode(ctx context.Context, n *node.Node) error {
	if err := n.WriteConf("10-mynet.conf", bridgeConf); err != nil {
		return err
	}
	endpoint := "unix://" + node.CrinetdSocket
	if err := n.WriteFile("/etc/crictl.yaml",
		"runtime-endpoint: "+endpoint+"\nimage-endpoint: "+endpoint+"\n"); err != nil {
		return err
	}
	if err := n.StartContainerd(ctx); err != nil {
		return err
	}
	if err := n.StartCrinetd(ctx, "--network-plugin=mynet"); err != nil {
		return err
	}
	client, err := n.Client(node.CrinetdSocket)
	if err != nil {
		return err
	}
	_, err = client.AwaitNetwork(ctx, true)
	return err
}

// runPod does with crictl what the kubelet does, and returns the sandbox's id.
func runPod(ctx context.Context, n *node.Node) (string, error) {
	pod := n.PodConfig("web")
	container := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"},
		Image:    &runtimeapi.ImageSpec{Image: node.TestImage},
		LogPath:  "web.log",
	}
	const podFile, containerFile = "/run/demo/pod.json", "/run/demo/container.json"
	for name, value := range map[string]any{podFile: pod, containerFile: container} {
		text, err := json.Marshal(value)
		if err != nil {
			return "", err
		}
		if err := n.WriteFile(name, string(text)); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(n.Path(pod.GetLogDirectory()), 0o755); err != nil {
		return "", err
	}
	sandbox, err := n.Crictl(ctx, node.CrinetdSocket, "runp", podFile)
	if err != nil {
		return "", err
	}
	sandbox = strings.TrimSpace(sandbox)
	id, err := n.Crictl(ctx, node.CrinetdSocket, "create", "--no-pull", sandbox, containerFile, podFile)
	if err != nil {
		return "", err
	}
	_, err = n.Crictl(ctx, node.CrinetdSocket, "start", strings.TrimSpace(id))
	return sandbox, err
}

func stateOf(ctx context.Context, n *node.Node, sandbox string) (node.PodState, error) {
	states, err := n.PodStates(ctx)
	if err != nil {
		return node.PodState{}, err
	}
	for _, state := range states {
		if state.SandboxID == sandbox {
			return state, nil
		}
	}
	return node.PodState{}, fmt.Errorf("crinetctl does not list sandbox %s", sandbox)
}

func printHints(out io.Writer, n *node.Node) {
	enter := fmt.Sprintf("sudo nsenter --target %d --mount --net --pid", n.PID())
	kit := n.Kit()
	fmt.Fprintf(out, `The node is left running. Talk to it:
  %[1]s %[2]s pods
  %[1]s %[3]s pods
  %[1]s bash
Its logs are in %[4]s/log. Remove it:
  sudo make -C %[5]s demo REMOVE=%[4]s
`, enter, kit.Tool("crictl"), kit.Crinet("crinetctl"), n.Dir(), kit.Root())
}
