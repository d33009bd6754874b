package cluster

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/crinet-project/crinet/integration/node"
)

const (
	wholeProc         = "/etc/proc-of-node"
	kubeletConfigFile = kubeDir + "/kubelet.yaml"
	proxyConfigFile   = kubeDir + "/kube-proxy.yaml"
	// ManifestDir is where the kubelets look for static pods.
	ManifestDir = kubeDir + "/manifests"
	// networkFile is the one of the conf dir, unless told otherwise.
	networkFile = "10-pods.conflist"
)

// kubeletConfig departs from the defaults where the nodes can't count on the
// machine: cgroups v1 without the right to raise priorities; images that can't be
// pulled again and must not be collected.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s
address: "%[2]s"
failCgroupV1: false
failSwapOn: false
cgroupsPerQOS: false
cgroupDriver: cgroupfs
cgroupRoot: %[3]s
enforceNodeAllocatable: []
oomScoreAdj: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: %[4]s}}
authorization: {mode: AlwaysAllow}
clusterDNS: [%[5]s]
clusterDomain: cluster.local
staticPodPath: %[6]s
volumePluginDir: /var/lib/kubelet/volumeplugins
imageGCHighThresholdPercent: 100
maxPods: 250
kubeAPIQPS: 200
kubeAPIBurst: 400
registryPullQPS: 0
%[7]s`

const noEviction = `evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%", pid.available: "0%"}
`

// proxyConfig leaves alone what belongs to the whole machine.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %[1]s
clientConnection: {kubeconfig: %[2]s}
hostnameOverride: %[3]s
clusterCIDR: "%[4]s"
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// machineSysctls are those that a kubelet sets for the whole machine, with the
// values that it wants. It finds them set.
var machineSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// Member is one node of a cluster.
type Member struct {
	*node.Node
	// Name is that of the Node object.
	Name string
	// Kubelet and Proxy are its services; Proxy is nil without kube-proxy.
	Kubelet, Proxy *node.Service

	cluster *Cluster
}

// writeFiles writes what the node's services read, but for the network.
func (m *Member) writeFiles() error {
	c := m.cluster
	eviction := noEviction
	if strings.Contains(c.options.Kubelet, "evictionHard") {
		eviction = ""
	}
	for name, content := range map[string]string{
		caFile:     string(c.ca.cert),
		Kubeconfig: c.ca.kubeconfig(c.server(), c.admin),
		kubeletConfigFile: fmt.Sprintf(kubeletConfig, node.CrinetdSocket, c.main("0.0.0.0", "::"), "/"+filepath.Base(m.Dir()), caFile,
			c.main(dnsService4, dnsService6), ManifestDir, eviction+c.options.Kubelet),
		proxyConfigFile: fmt.Sprintf(proxyConfig, c.options.ProxyMode, Kubeconfig, m.Name, c.both(podRange4, podRange6)),
		// kubelets mount it into pods.
		ManifestDir + "/.keep": "",
	} {
		if err := m.WriteFile(name, content); err != nil {
			return err
		}
	}
	return nil
}

// hideSysctls lets the node see settings of the machine as a kubelet wants them.
func (m *Member) hideSysctls(ctx context.Context) error {
	// The kernel mounts proc in a pod's user namespace only where the node has one
	// that nothing covers.
	if _, err := m.Run(ctx, "sh", "-c", "mkdir -p "+wholeProc+" && mount -t proc proc "+wholeProc); err != nil {
		return err
	}
	for name, value := range machineSysctls {
		file := "/etc/sysctl-of-node/" + name
		if err := m.WriteFile(file, value+"\n"); err != nil {
			return err
		}
		if _, err := m.Run(ctx, "mount", "--bind", file, "/proc/sys/"+name); err != nil {
			return err
		}
	}
	return nil
}

// startRuntime starts containerd and crinetd with the network.
func (m *Member) startRuntime(ctx context.Context) error {
	if err := m.hideSysctls(ctx); err != nil {
		return err
	}
	files := m.cluster.options.Network
	if files == nil {
		files = map[string]string{networkFile: BridgeNetwork}
	}
	for name, content := range files {
		if err := m.WriteConf(name, content); err != nil {
			return err
		}
	}
	if err := m.StartContainerd(ctx); err != nil {
		return err
	}
	return m.StartCrinetdAgain(ctx)
}

// StartCrinetdAgain starts crinetd with the flags that it has in this cluster.
func (m *Member) StartCrinetdAgain(ctx context.Context) error {
	return m.StartCrinetd(ctx, append([]string{"--network-plugin=cni", "--v=4"}, m.cluster.options.Crinetd...)...)
}

// SetProxyMode has kube-proxy run in another mode, and takes away before what it
// did in the last.
func (m *Member) SetProxyMode(ctx context.Context, mode string) error {
	if err := m.Proxy.Stop(); err != nil {
		return err
	}
	if _, err := m.Run(ctx, m.Kit().Tool("kube-proxy"), "--cleanup", "--config="+proxyConfigFile); err != nil {
		return err
	}
	config := fmt.Sprintf(proxyConfig, mode, Kubeconfig, m.Name, m.cluster.both(podRange4, podRange6))
	if err := m.WriteFile(proxyConfigFile, config); err != nil {
		return err
	}
	return m.Proxy.Start()
}

// startKube starts the kubelet and kube-proxy.
func (m *Member) startKube() error {
	c := m.cluster
	m.Kubelet = m.Service("kubelet", m.Kit().Tool("kubelet"), "--config="+kubeletConfigFile, "--kubeconfig="+Kubeconfig,
		"--hostname-override="+m.Name, "--node-ip="+c.both(m.IPv4(), m.IPv6()), "--cert-dir=/var/lib/kubelet/pki")
	if err := m.Kubelet.Start(); err != nil {
		return err
	}
	if c.options.ProxyMode == "none" {
		return nil
	}
	m.Proxy = m.Service("kube-proxy", m.Kit().Tool("kube-proxy"), "--config="+proxyConfigFile)
	return m.Proxy.Start()
}

// Reboot cuts the power of a node and has it boot: all its services start again,
// those of the control plane too if it has them.
func (c *Cluster) Reboot(ctx context.Context, m *Member) error {
	if err := m.PowerCycle(ctx); err != nil {
		return err
	}
	if m == c.Members[0] {
		c.client.CloseIdleConnections()
		for _, s := range []*node.Service{c.control.etcd, c.control.api, c.control.manager, c.control.scheduler} {
			if err := s.Start(); err != nil {
				return err
			}
		}
	}
	for _, start := range []func() error{
		m.Kubelet.Start,
		func() error { return m.StartContainerd(ctx) },
		func() error { return m.StartCrinetdAgain(ctx) },
	} {
		if err := start(); err != nil {
			return err
		}
	}
	if m.Proxy != nil {
		return m.Proxy.Start()
	}
	return nil
}
