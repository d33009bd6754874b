package cluster

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/crinet-project/crinet/integration/node"
)

// Addresses of the cluster's own, from private ranges; the Services' ranges have
// the API server's at .1 and the name server's at .10.
const (
	podRange4, podRange6         = "10.244.0.0/16", "fd00:244::/48"
	serviceRange4, serviceRange6 = "10.96.0.0/16", "fd00:96::/112"
	apiService4, apiService6     = "10.96.0.1", "fd00:96::1"
	dnsService4, dnsService6     = "10.96.0.10", "fd00:96::a"

	loopback = "127.0.0.1"
	apiPort  = "6443"
	etcdPort = "2379"
)

// Files of the nodes.
const (
	kubeDir = "/etc/kubernetes"
	// Kubeconfig is the administrator's.
	Kubeconfig = kubeDir + "/admin.conf"
	caFile     = kubeDir + "/ca.crt"
	apiCert    = kubeDir + "/apiserver.crt"
	apiKey     = kubeDir + "/apiserver.key"
	adminCert  = kubeDir + "/admin.crt"
	adminKey   = kubeDir + "/admin.key"
	tokenKey   = kubeDir + "/tokens.key"
)

// control is the control plane, on the first node.
type control struct {
	etcd, api, manager, scheduler *node.Service
}

// both joins the IPv4 and the IPv6 form of a setting for the families that the
// cluster has, in their order.
func (c *Cluster) both(v4, v6 string) string {
	var forms []string
	for _, family := range c.options.Families {
		if family == IPv4 {
			forms = append(forms, v4)
		} else {
			forms = append(forms, v6)
		}
	}
	return strings.Join(forms, ",")
}

// main is the form of a setting for the first family.
func (c *Cluster) main(v4, v6 string) string {
	first, _, _ := strings.Cut(c.both(v4, v6), ",")
	return first
}

// list is the same as a list in YAML.
func (c *Cluster) list(v4, v6 string) string {
	return `["` + strings.ReplaceAll(c.both(v4, v6), ",", `", "`) + `"]`
}

// server is the API server's address for clients on all nodes.
func (c *Cluster) server() string {
	first := c.Members[0]
	return "https://" + net.JoinHostPort(c.main(first.IPv4(), first.IPv6()), apiPort)
}

func (c *Cluster) writeControlFiles() error {
	first := c.Members[0]
	api, err := c.ca.server("kube-apiserver",
		[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"},
		loopback, "::1", first.IPv4(), first.IPv6(), apiService4, apiService6)
	if err != nil {
		return err
	}
	tokens, err := c.ca.client("tokens", "none") // for its key
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		apiCert: api.cert, apiKey: api.key, adminCert: c.admin.cert, adminKey: c.admin.key, tokenKey: tokens.key,
	} {
		if err := first.WriteFile(name, string(content)); err != nil {
			return err
		}
	}
	return nil
}

// startControl starts the control plane and waits until it serves.
func (c *Cluster) startControl(ctx context.Context) error {
	for _, m := range c.Members {
		if err := m.writeFiles(); err != nil {
			return err
		}
	}
	if err := c.writeControlFiles(); err != nil {
		return err
	}
	c.makeControl()
	for _, s := range []*node.Service{c.control.etcd, c.control.api} {
		if err := s.Start(); err != nil {
			return err
		}
	}
	if err := c.control.api.Await(ctx, c.apiServes); err != nil {
		return err
	}
	for _, s := range []*node.Service{c.control.manager, c.control.scheduler} {
		if err := s.Start(); err != nil {
			return err
		}
	}
	// Pods are refused before the namespace has its service account.
	return c.control.manager.Await(ctx, func(ctx context.Context) error {
		return c.Get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
	})
}

// makeControl says how the parts of the control plane are run.
func (c *Cluster) makeControl() {
	first := c.Members[0]
	kit := first.Kit()
	etcdClients := "http://" + loopback + ":" + etcdPort
	c.control = control{
		etcd: first.Service("etcd", kit.Tool("etcd"),
			"--data-dir=/var/lib/etcd", "--listen-peer-urls=http://"+loopback+":2380",
			"--listen-client-urls="+etcdClients+",http://"+first.IPv4()+":"+etcdPort,
			"--advertise-client-urls="+etcdClients, "--enable-v2=false", "--logger=zap"),
		api: first.Service("kube-apiserver", kit.Tool("kube-apiserver"),
			"--etcd-servers="+etcdClients, "--secure-port="+apiPort, "--bind-address=::",
			"--advertise-address="+c.main(first.IPv4(), first.IPv6()),
			"--tls-cert-file="+apiCert, "--tls-private-key-file="+apiKey, "--client-ca-file="+caFile,
			"--kubelet-preferred-address-types=InternalIP", "--kubelet-client-certificate="+adminCert, "--kubelet-client-key="+adminKey,
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file="+tokenKey, "--service-account-signing-key-file="+tokenKey,
			"--service-cluster-ip-range="+c.both(serviceRange4, serviceRange6),
			"--requestheader-client-ca-file="+caFile, "--requestheader-allowed-names=nobody",
			"--authorization-mode=RBAC", "--allow-privileged=true"),
		manager: first.Service("kube-controller-manager", append([]string{kit.Tool("kube-controller-manager"),
			"--kubeconfig=" + Kubeconfig, "--leader-elect=false", "--bind-address=" + loopback,
			"--authentication-kubeconfig=" + Kubeconfig, "--authorization-kubeconfig=" + Kubeconfig,
			"--allocate-node-cidrs=true", "--cluster-cidr=" + c.both(podRange4, podRange6),
			"--service-cluster-ip-range=" + c.both(serviceRange4, serviceRange6),
			"--root-ca-file=" + caFile, "--service-account-private-key-file=" + tokenKey}, c.maskSize()...)...),
		scheduler: first.Service("kube-scheduler", kit.Tool("kube-scheduler"),
			"--kubeconfig="+Kubeconfig, "--leader-elect=false", "--bind-address="+loopback,
			"--authentication-kubeconfig="+Kubeconfig, "--authorization-kubeconfig="+Kubeconfig),
	}
}

// maskSize are the flags for the size of a node's part of the pods' range. The
// controller manager takes those of both families only together.
func (c *Cluster) maskSize() []string {
	if len(c.options.Families) > 1 {
		return []string{"--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"}
	}
	return []string{"--node-cidr-mask-size=" + c.main("24", "64")}
}

// apiServes asks whether the API server and what it rests on are up.
func (c *Cluster) apiServes(ctx context.Context) error {
	if err := c.Get(ctx, "/readyz", nil); err != nil {
		return fmt.Errorf("the API server is not ready: %w", err)
	}
	return nil
}
