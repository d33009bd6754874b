package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/crinet-project/crinet/integration/node"
)

// dnsTimeout is how long CoreDNS may take to be ready.
const dnsTimeout = 2 * time.Minute

// corefile is CoreDNS' configuration: the cluster's names, and nothing for others.
const corefile = `.:53 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        endpoint %s
        kubeconfig /etc/kubernetes/admin.conf test
        pods insecure
    }
}
`

// dnsManifest runs CoreDNS as a cluster does. The program comes from the
// machine, as there is no registry to pull its image from.
const dnsManifest = `apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: %[1]q
  clusterIPs: %[2]s
  ipFamilyPolicy: PreferDualStack
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      dnsPolicy: Default
      terminationGracePeriodSeconds: 1
      containers:
      - name: coredns
        image: %[3]s
        imagePullPolicy: IfNotPresent
        command: [/tools/coredns, -conf, /etc/kubernetes/Corefile]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
        volumeMounts:
        - {name: tools, mountPath: /tools, readOnly: true}
        - {name: config, mountPath: /etc/kubernetes, readOnly: true}
      volumes:
      - {name: tools, hostPath: {path: %[4]s}}
      - {name: config, hostPath: {path: /etc/kubernetes}}
`

// startDNS starts CoreDNS and waits until it is ready.
func (c *Cluster) startDNS(ctx context.Context) error {
	for _, m := range c.Members {
		if err := m.WriteFile(kubeDir+"/Corefile", fmt.Sprintf(corefile, c.server())); err != nil {
			return err
		}
	}
	tool, err := filepath.EvalSymlinks(c.Members[0].Kit().Tool("coredns"))
	if err != nil {
		return fmt.Errorf("find CoreDNS: %w", err)
	}
	err = c.Apply(ctx, fmt.Sprintf(dnsManifest, c.main(dnsService4, dnsService6), c.list(dnsService4, dnsService6),
		node.BusyboxImage, filepath.Dir(tool)))
	if err != nil {
		return err
	}
	waitCtx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	if _, err = c.AwaitPods(waitCtx, "k8s-app=kube-dns", 1); err != nil {
		log, logErr := c.Kubectl(ctx, "logs", "--namespace=kube-system", "--selector=k8s-app=kube-dns")
		return errors.Join(err, logErr, errors.New("CoreDNS says: "+log))
	}
	return nil
}
