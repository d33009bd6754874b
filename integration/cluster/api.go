package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// pollEvery is the pause between two looks at something that is waited for.
const pollEvery = 100 * time.Millisecond

// Get asks the API server for a path, such as /api/v1/nodes, and decodes its
// answer into value; nil drops it.
func (c *Cluster) Get(ctx context.Context, path string, value any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://localhost"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the answer to %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s: %s", path, resp.Status, body)
	}
	if value == nil {
		return nil
	}
	if err := json.Unmarshal(body, value); err != nil {
		return fmt.Errorf("read the answer to %s: %w", path, err)
	}
	return nil
}

// Kubectl runs kubectl on the first node and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.Members[0].Run(ctx, "kubectl", append([]string{"--kubeconfig=" + Kubeconfig}, args...)...)
}

// Apply has the API server hold the objects of a YAML text.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	_, err := c.Members[0].RunInput(ctx, strings.NewReader(manifest), "kubectl", "--kubeconfig="+Kubeconfig,
		"apply", "--validate=false", "-f", "-")
	return err
}

// Condition is one of an object's conditions.
type Condition struct{ Type, Status, Reason, Message, LastTransitionTime string }

// NodeObject is what the API server knows of a node.
type NodeObject struct {
	Metadata struct{ Name string }
	Spec     struct{ PodCIDRs []string }
	Status   struct {
		Conditions []Condition
		NodeInfo   struct{ KubeletVersion, ContainerRuntimeVersion string }
	}
}

// Ready is the node's condition of that name.
func (n NodeObject) Ready() Condition { return find(n.Status.Conditions, "Ready") }

// Pod is what the API server knows of a pod.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID, DeletionTimestamp string
		Labels                                  map[string]string
	}
	Spec struct {
		NodeName    string
		HostNetwork bool
	}
	Status struct {
		Phase, Reason, Message string
		PodIP, HostIP          string
		PodIPs                 []struct{ IP string }
		Conditions             []Condition
		ContainerStatuses      []struct {
			RestartCount int
			Ready        bool
		}
	}
}

// Ready says whether the pod's containers are.
func (p Pod) Ready() bool { return find(p.Status.Conditions, "Ready").Status == "True" }

func find(conditions []Condition, name string) Condition {
	for _, condition := range conditions {
		if condition.Type == name {
			return condition
		}
	}
	return Condition{}
}

// Nodes lists the cluster's nodes.
func (c *Cluster) Nodes(ctx context.Context) ([]NodeObject, error) {
	var list struct{ Items []NodeObject }
	err := c.Get(ctx, "/api/v1/nodes", &list)
	return list.Items, err
}

// Pods lists the pods of all namespaces with the labels that a selector asks for,
// such as app=web.
func (c *Cluster) Pods(ctx context.Context, selector string) ([]Pod, error) {
	var list struct{ Items []Pod }
	err := c.Get(ctx, "/api/v1/pods?labelSelector="+url.QueryEscape(selector), &list)
	return list.Items, err
}

// AwaitReady waits until all nodes are ready.
func (c *Cluster) AwaitReady(ctx context.Context) error {
	return Await(ctx, "all nodes are ready", func() error {
		nodes, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		if len(nodes) != len(c.Members) {
			return fmt.Errorf("%d of %d nodes are registered", len(nodes), len(c.Members))
		}
		for _, n := range nodes {
			if ready := n.Ready(); ready.Status != "True" {
				return fmt.Errorf("node %s: %s: %s", n.Metadata.Name, ready.Reason, ready.Message)
			}
		}
		return nil
	})
}

// AwaitPods waits until as many pods as wanted have the labels, all of them
// ready and none on its way out, and returns them.
func (c *Cluster) AwaitPods(ctx context.Context, selector string, want int) (pods []Pod, err error) {
	err = Await(ctx, fmt.Sprintf("%d pods of %s are ready", want, selector), func() error {
		if pods, err = c.Pods(ctx, selector); err != nil {
			return err
		}
		var ready int
		var last string
		for _, pod := range pods {
			if pod.Ready() && pod.Metadata.DeletionTimestamp == "" {
				ready++
			} else {
				last = fmt.Sprintf("; %s: %s %s %v", pod.Metadata.Name, pod.Status.Phase, pod.Status.Message, pod.Status.Conditions)
			}
		}
		if ready != want || len(pods) != want {
			return fmt.Errorf("%d pods, %d of them ready%s", len(pods), ready, last)
		}
		return nil
	})
	return pods, err
}

// Await calls check until it returns nil or ctx ends.
func Await(ctx context.Context, what string, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w; last: %w", what, ctx.Err(), err)
		case <-time.After(pollEvery):
		}
	}
}
