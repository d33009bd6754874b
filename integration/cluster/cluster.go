package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/crinet-project/crinet/integration/node"
)

// tools are what `integration/tools/build cluster` installs.
var tools = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}

// startTimeout is how long the parts of a cluster may take to come up together,
// on a machine that has much else to do.
const startTimeout = 5 * time.Minute

// Options are the choices that Start has. The zero value is one node with IPv4
// and kube-proxy in iptables mode.
type Options struct {
	// Nodes is how many there are; 1 if 0.
	Nodes int
	// Families are the IP families of pods and Services, the first one first;
	// IPv4 alone if empty.
	Families []Family
	// ProxyMode is kube-proxy's: iptables (if empty), nftables; "none" runs
	// no kube-proxy.
	ProxyMode string
	// Network is the conf dir's content on each node, by file name. If nil there
	// is one file: a bridge with addresses of the node's pod CIDR.
	Network map[string]string
	// Routed gives each node a route to the pod CIDR of each other. A cluster with
	// the default Network has them in any case.
	Routed bool
	// NoDNS leaves CoreDNS out.
	NoDNS bool
	// Late has Start return as soon as the kubelets run, whether nodes are ready
	// or not. CoreDNS is left out.
	Late bool
	// Kubelet is YAML that is added to the kubelets' configuration.
	Kubelet string
	// Crinetd are more flags of crinetd.
	Crinetd []string
	// Prepare is called for each node before anything is started on it.
	Prepare func(*node.Node) error
	// Keep lets the nodes live on when this process ends.
	Keep bool
	// Progress is told what is done next; nil tells nobody.
	Progress func(step string)
}

// Family is an IP family of a cluster.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Cluster is a running cluster. Its methods can be used at the same time, but
// for those that start, stop or close something.
type Cluster struct {
	Members []*Member

	options Options
	ca      *authority
	admin   pair
	control control
	client  *http.Client
}

// Start starts a cluster and waits until its nodes are ready, unless told
// otherwise. The caller closes it.
func Start(ctx context.Context, kit *node.Kit, options Options) (_ *Cluster, err error) {
	options.Nodes = cmp.Or(options.Nodes, 1)
	options.ProxyMode = cmp.Or(options.ProxyMode, "iptables")
	if len(options.Families) == 0 {
		options.Families = []Family{IPv4}
	}
	if options.Progress == nil {
		options.Progress = func(string) {}
	}
	needed := tools
	if !options.NoDNS && !options.Late {
		needed = append(needed[:len(needed):len(needed)], "coredns")
	}
	for _, tool := range needed {
		if _, err := os.Stat(kit.Tool(tool)); err != nil {
			return nil, fmt.Errorf("the test cluster's tools are missing, run `integration/tools/build cluster`: %w", err)
		}
	}
	c := &Cluster{options: options}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start a cluster: %w", err), errors.New(c.LogTails(30)), c.Close())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	options.Progress("making nodes, certificates and configurations")
	if err := c.makeMembers(ctx, kit); err != nil {
		return nil, err
	}
	if err := c.makeCertificates(); err != nil {
		return nil, err
	}
	if err := c.startAll(ctx); err != nil {
		return nil, err
	}
	if options.Late {
		return c, nil
	}
	options.Progress("waiting for the nodes to be ready")
	if err := c.AwaitReady(ctx); err != nil {
		return nil, err
	}
	if options.Network == nil || options.Routed {
		if err := c.route(ctx); err != nil {
			return nil, err
		}
	}
	if options.NoDNS {
		return c, nil
	}
	options.Progress("starting CoreDNS as a pod")
	return c, c.startDNS(ctx)
}

func (c *Cluster) makeMembers(ctx context.Context, kit *node.Kit) error {
	for i := range c.options.Nodes {
		options := node.Options{Keep: c.options.Keep}
		if i > 0 {
			options.Beside = c.Members[0].Node
		}
		n, err := kit.Start(ctx, options)
		if err != nil {
			return err
		}
		m := &Member{Node: n, Name: fmt.Sprintf("node-%d", i+1), cluster: c}
		c.Members = append(c.Members, m)
		if c.options.Prepare != nil {
			if err := c.options.Prepare(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeCertificates makes what the API server and its clients identify themselves
// with, and the client of this process.
func (c *Cluster) makeCertificates() error {
	var err error
	if c.ca, err = newAuthority(); err != nil {
		return err
	}
	if c.admin, err = c.ca.client("admin", "system:masters"); err != nil {
		return err
	}
	config, err := c.ca.tlsConfig(c.admin)
	if err != nil {
		return err
	}
	first := c.Members[0]
	c.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig:   config,
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return first.Dial(ctx, "tcp", loopback+":"+apiPort)
		},
	}}
	return nil
}

// startAll starts the control plane, and beside it the runtimes; then the kubelets.
func (c *Cluster) startAll(ctx context.Context) error {
	c.options.Progress("starting etcd and the API server, containerd and crinetd")
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.startControl(groupCtx) })
	for _, m := range c.Members {
		group.Go(func() error { return m.startRuntime(groupCtx) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.options.Progress("starting kubelets and kube-proxies")
	for _, m := range c.Members {
		if err := m.startKube(); err != nil {
			return err
		}
	}
	return nil
}

// Main is the cluster's first IP family.
func (c *Cluster) Main() Family { return c.options.Families[0] }

// Member is the node of that name; nil if there is none.
func (c *Cluster) Member(name string) *Member {
	for _, m := range c.Members {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// LogTails returns the ends of all logs, for the output of a test that failed.
func (c *Cluster) LogTails(lines int) string {
	var b strings.Builder
	for _, m := range c.Members {
		fmt.Fprintf(&b, "===== %s\n%s", m.Name, m.LogTails(lines))
	}
	return b.String()
}

// Close ends the cluster and removes it from the machine.
func (c *Cluster) Close() error {
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	var errs []error
	for i := len(c.Members) - 1; i >= 0; i-- {
		errs = append(errs, c.Members[i].Close())
	}
	c.Members = nil
	return errors.Join(errs...)
}
