package cluster_test

import (
	"fmt"
	"testing"

	"github.com/crinet-project/crinet/integration/cluster"
)

// With --drift=recreate the kubelet makes the sandbox of a pod anew whose eth0 somebody
// has deleted: the pod stays, gets another network, and answers again.
func TestDriftIsMadeAnewByTheKubelet(t *testing.T) {
	t.Parallel()
	c := newCluster(t, cluster.Options{NoDNS: true, Crinetd: []string{"--drift=recreate", "--drift-interval=1s"}})
	c.apply(web, "web", 1, "", "")
	pod, m := c.pod("web"), c.Members[0]
	c.answers(m.Place, pod.Status.PodIP, 80, "web")
	_, err := c.place(pod).Run(c.ctx, "ip", "link", "del", "eth0")
	c.ok(err)
	c.await("the pod has a new sandbox", func() error {
		pods, err := c.Pods(c.ctx, "app=web")
		if err != nil {
			return err
		}
		if len(pods) != 1 || !pods[0].Ready() || pods[0].Status.ContainerStatuses[0].RestartCount == 0 {
			return fmt.Errorf("the pods are %+v", pods)
		}
		if pods[0].Metadata.UID != pod.Metadata.UID {
			return fmt.Errorf("there is another pod, %s", pods[0].Metadata.Name)
		}
		return nil
	})
	c.answers(m.Place, c.pod("web").Status.PodIP, 80, "web")
	c.await("no pod is drifted", func() error {
		drifted, err := m.Metric(c.ctx, "crinet_pods_drifted")
		if err == nil && drifted != 0 {
			err = fmt.Errorf("%v pods are drifted", drifted)
		}
		return err
	})
	if remade, err := m.Metric(c.ctx, "crinet_drift_recreations_total"); err != nil || remade != 1 {
		t.Errorf("%v sandboxes were made anew, %v; want 1", remade, err)
	}
	c.agree(m)
}
