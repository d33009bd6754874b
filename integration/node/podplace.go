package node

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crinet-project/crinet/runtime/upstream"
)

// Place returns a place in the pod's network namespace; its other namespaces are
// the node's. It costs less than a container. It is valid until the node's Close,
// and keeps the pod's network namespace alive.
func (p *Pod) Place(ctx context.Context) (*Place, error) {
	path, err := upstream.NewSandboxes(p.client.Conn).NetNS(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, fmt.Errorf("pod %s has no network of its own", p.name())
	}
	n := p.client.node
	place := &Place{name: "pod " + p.name(), pid: n.pid, mnt: n.mnt, path: n.path}
	err = n.Do(func() (err error) {
		place.net, err = openNamespace(path)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the network of pod %s: %w", p.name(), err)
	}
	n.mu.Lock()
	n.clients = append(n.clients, place.net)
	n.mu.Unlock()
	return place, nil
}

// PodNamed finds the running sandbox of a pod that somebody else, such as a
// kubelet, has made.
func (c *Client) PodNamed(ctx context.Context, namespace, name string) (*Pod, error) {
	resp, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State:         &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
		LabelSelector: map[string]string{"io.kubernetes.pod.namespace": namespace, "io.kubernetes.pod.name": name},
	}})
	if err != nil {
		return nil, fmt.Errorf("find pod %s/%s: %w", namespace, name, err)
	}
	if found := len(resp.GetItems()); found != 1 {
		return nil, fmt.Errorf("pod %s/%s has %d running sandboxes", namespace, name, found)
	}
	sandbox := resp.GetItems()[0]
	return &Pod{ID: sandbox.GetId(), Config: &runtimeapi.PodSandboxConfig{Metadata: sandbox.GetMetadata()}, client: c}, nil
}
