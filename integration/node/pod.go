package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podLogs is where the logs of containers lie in the node.
const podLogs = "/run/pods"

// Pod is a sandbox, and the client that made it.
type Pod struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig

	client *Client
}

// Container is one container of a pod.
type Container struct {
	ID string

	pod *Pod
	log string
}

// PodConfig describes a pod in the namespace default as the kubelet would. The
// caller may change it.
func (n *Node) PodConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: newUID()},
		Hostname:     name,
		LogDirectory: path.Join(podLogs, name),
		Labels:       map[string]string{"io.kubernetes.pod.name": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.cgroupParent(),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// newUID returns a random pod UID.
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	s := hex.EncodeToString(b[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// RunPod runs a sandbox.
func (c *Client) RunPod(ctx context.Context, config *runtimeapi.PodSandboxConfig) (*Pod, error) {
	return c.RunPodBy(ctx, "", config)
}

// RunPodBy runs a sandbox by a runtime handler; empty is the default one.
func (c *Client) RunPodBy(ctx context.Context, handler string, config *runtimeapi.PodSandboxConfig) (*Pod, error) {
	if err := os.MkdirAll(c.node.Path(config.GetLogDirectory()), 0o755); err != nil {
		return nil, fmt.Errorf("make the log directory of pod %s: %w", config.GetMetadata().GetName(), err)
	}
	resp, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, fmt.Errorf("run pod %s: %w", config.GetMetadata().GetName(), err)
	}
	return &Pod{ID: resp.GetPodSandboxId(), Config: config, client: c}, nil
}

// Addresses returns the pod's addresses as CRI reports them.
func (p *Pod) Addresses(ctx context.Context) ([]string, error) {
	resp, err := p.client.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return nil, fmt.Errorf("status of pod %s: %w", p.name(), err)
	}
	network := resp.GetStatus().GetNetwork()
	if network.GetIp() == "" {
		return nil, nil
	}
	addrs := []string{network.GetIp()}
	for _, more := range network.GetAdditionalIps() {
		addrs = append(addrs, more.GetIp())
	}
	return addrs, nil
}

// Stop stops the sandbox, which takes its network away.
func (p *Pod) Stop(ctx context.Context) error {
	_, err := p.client.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", p.name(), err)
	}
	return nil
}

// Remove removes the sandbox and its containers; a running one is stopped.
func (p *Pod) Remove(ctx context.Context) error {
	_, err := p.client.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
	if err != nil {
		return fmt.Errorf("remove pod %s: %w", p.name(), err)
	}
	return nil
}

// StopAndRemove does what the kubelet does to a pod that is no longer wanted.
func (p *Pod) StopAndRemove(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	return p.Remove(ctx)
}

// RemovePod stops and removes a sandbox, whoever made it.
func (c *Client) RemovePod(ctx context.Context, id string) error {
	if _, err := c.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	if _, err := c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}

func (p *Pod) name() string { return p.Config.GetMetadata().GetName() }

// RunContainer creates and starts a container. Without a command it runs the
// image's.
func (p *Pod) RunContainer(ctx context.Context, name, image string, command ...string) (*Container, error) {
	logFile := name + ".log"
	created, err := p.client.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.ID,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  command,
			LogPath:  logFile,
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
				Seccomp:          p.Config.GetLinux().GetSecurityContext().GetSeccomp(),
			}},
		},
		SandboxConfig: p.Config,
	})
	if err != nil {
		return nil, fmt.Errorf("create container %s of pod %s: %w", name, p.name(), err)
	}
	id := created.GetContainerId()
	if _, err := p.client.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return nil, fmt.Errorf("start container %s of pod %s: %w", name, p.name(), err)
	}
	return &Container{ID: id, pod: p, log: path.Join(p.Config.GetLogDirectory(), logFile)}, nil
}

// execSeconds bounds a command in a container.
const execSeconds = 30

// Exec runs a command in the container and returns its standard output. An exit
// code other than 0 is an error.
func (c *Container) Exec(ctx context.Context, command ...string) (string, error) {
	resp, err := c.pod.client.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: c.ID, Cmd: command, Timeout: execSeconds,
	})
	if err == nil && resp.GetExitCode() != 0 {
		err = fmt.Errorf("exit code %d: %s", resp.GetExitCode(), resp.GetStderr())
	}
	if err != nil {
		return "", fmt.Errorf("exec %q in pod %s: %w", command, c.pod.name(), err)
	}
	return string(resp.GetStdout()), nil
}

// Log returns what the container has written so far, in CRI's format.
func (c *Container) Log() (string, error) {
	text, err := os.ReadFile(c.pod.client.node.Path(c.log))
	if err != nil {
		return "", fmt.Errorf("read the container's log: %w", err)
	}
	return string(text), nil
}
