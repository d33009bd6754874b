package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/dhcpd"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/noop"
	"github.com/crinet-project/crinet/runtime"
	"github.com/crinet-project/crinet/runtime/admin"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
	"github.com/crinet-project/crinet/runtime/socket"
)

// The sockets in --run-dir.
const (
	criSocket   = "cri.sock"
	cniSocket   = "cni.sock"
	adminSocket = "admin.sock"
)

// bootIDFile tells one boot of the kernel from another (proc(5)).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// sysctlRoot is where the noop plugin's sysctls are.
const sysctlRoot = "/proc/sys"

// daemon is a crinetd with everything open.
type daemon struct {
	options  *config.Options
	log      *slog.Logger
	registry *prometheus.Registry

	listeners map[string]net.Listener // by socket name
	journal   *journal.Journal
	exec      *runner
	networks  *networks
	chain     *cni.Plugin
	dhcp      *dhcpd.Manager
	noop      *noop.Plugin
	hostPorts *hostport.Manager
	manager   *runtime.Manager
	hook      *cnihook.Server
	proxy     *proxy.Proxy
}

// newDaemon opens the sockets, so that a second crinetd ends here, and the
// journal, and puts the parts together. Nothing is served yet: callers wait.
func newDaemon(ctx context.Context, o *config.Options, log *slog.Logger) (d *daemon, err error) {
	d = &daemon{options: o, log: log, registry: prometheus.NewRegistry(), listeners: make(map[string]net.Listener)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := d.listen(ctx); err != nil {
		return d, err
	}
	if d.journal, _, err = journal.Open(o.StateDir, log); err != nil {
		return d, fmt.Errorf("--state-dir: %w", err)
	}
	if d.exec, err = newRunner(o.StateDir); err != nil {
		return d, err
	}
	bootID, err := os.ReadFile(bootIDFile)
	if err != nil {
		return d, fmt.Errorf("boot id: %w", err)
	}
	metrics, err := runtime.NewMetrics(d.registry)
	if err != nil {
		return d, fmt.Errorf("metrics: %w", err)
	}
	cidrs, err := runtime.NewPodCIDRs(d.journal, o.PodCIDRs)
	if err != nil {
		return d, err
	}
	if d.networks, err = newNetworks(ctx, o, log, cidrs.Get); err != nil {
		return d, err
	}
	if err := d.newHostPorts(); err != nil {
		return d, err
	}
	plugins := d.plugins(cidrs)
	sandboxes := new(runtime.CRISandboxes)
	managed := runtime.Config{
		Log: log, Plugin: plugins[0], Plugins: plugins, Journal: d.journal, Sandboxes: sandboxes,
		BootID: string(bytes.TrimSpace(bootID)), PortMappings: o.HostPort == config.HostPortPlugin,
		PodCIDRs: cidrs, Metrics: metrics, Notice: d.networks.notice,
	}
	if !o.Noop() {
		managed.Collector, managed.GCInterval = d.chain, o.CNIGCInterval
	}
	if d.mapsHostPorts() {
		managed.HostPorts = d.hostPorts
	}
	if o.HairpinMode == config.HairpinVeth {
		managed.Hairpin = d.hairpin
	}
	d.manager = runtime.New(managed)
	if d.hook, err = cnihook.New(cnihook.Config{Handler: d.manager.CNIHandler(), Log: log}); err != nil {
		return d, err
	}
	d.proxy, err = proxy.New(proxy.Config{
		RuntimeEndpoint: o.ContainerRuntimeEndpoint, ImageEndpoint: o.ImageServiceEndpoint,
		Hooks: d.manager.Hooks(), Log: log, Observe: metrics.ObserveCall,
		Grace: max(o.ShutdownGrace, time.Millisecond),
	})
	if err != nil {
		return d, err
	}
	sandboxes.Connect(d.proxy.Upstream())
	return d, d.register()
}

// plugins are the network plugins, the selected one first. The CNI plugin is
// among them under noop as well: it undoes what an earlier run set up.
func (d *daemon) plugins(cidrs *runtime.PodCIDRs) []runtime.NetworkPlugin {
	chain := d.newChain(cidrs)
	if !d.options.Noop() {
		return []runtime.NetworkPlugin{chain}
	}
	d.noop = noop.New(sysctlRoot, d.log)
	return []runtime.NetworkPlugin{d.noop, chain}
}

// listen opens the sockets.
func (d *daemon) listen(ctx context.Context) error {
	if err := os.MkdirAll(d.options.RunDir, 0o700); err != nil {
		return fmt.Errorf("--run-dir: %w", err)
	}
	for _, name := range []string{criSocket, cniSocket, adminSocket} {
		l, err := socket.Listen(ctx, filepath.Join(d.options.RunDir, name), d.log)
		if err != nil {
			return err
		}
		d.listeners[name] = l
	}
	return nil
}

// register registers the metrics that are not registered where they are kept.
func (d *daemon) register() error {
	return errors.Join(
		d.manager.Register(d.registry),
		d.registerNetworks(),
		d.registry.Register(collectors.NewGoCollector()),
		d.registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	)
}

// serve recovers, makes the node ready and serves until ctx ends or a part
// fails.
func (d *daemon) serve(ctx context.Context) error {
	if err := d.endOrphans(ctx); err != nil {
		return err
	}
	if err := d.manager.Recover(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	if d.noop != nil {
		ready := make(chan struct{})
		group.Go(func() error { d.noop.Run(ctx, ready); return nil })
		<-ready
	}
	group.Go(func() error { return d.networks.run(ctx) })
	d.serveChain(ctx, group)
	if err := d.serveHostPorts(ctx, group); err != nil {
		return err
	}
	if err := d.install(ctx, group); err != nil {
		return err
	}
	group.Go(func() error { d.manager.Run(ctx); return nil })
	d.serveCalls(ctx, group)
	group.Go(func() error {
		return admin.Serve(ctx, d.listeners[adminSocket], admin.Handler(d, metricsHandler(d.registry), d.log))
	})
	if addr := d.options.MetricsBindAddress; addr != "" {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return fmt.Errorf("--metrics-bind-address: %w", err)
		}
		group.Go(func() error { return admin.Serve(ctx, l, metricsHandler(d.registry)) })
	}
	d.log.Info("crinetd serves", "version", version, "plugin", d.manager.Plugin.Name(), "runDir", d.options.RunDir)
	if err := notify("READY=1"); err != nil {
		d.log.Warn("started, but the service manager does not know", "err", err)
	}
	err := group.Wait()
	d.log.Info("crinetd ends")
	return err
}

// serveCalls serves the kubelet and the runtime. The hook ends after the proxy:
// the kubelet's calls that finish in the grace need the runtime's.
func (d *daemon) serveCalls(ctx context.Context, group *errgroup.Group) {
	hookCtx, endHook := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error { return d.hook.Serve(hookCtx, d.listeners[cniSocket]) })
	group.Go(func() error {
		defer endHook()
		return d.proxy.Serve(ctx, d.listeners[criSocket])
	})
}

// close closes what newDaemon opened.
func (d *daemon) close() error {
	var errs []error
	for _, l := range d.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if d.proxy != nil {
		errs = append(errs, d.proxy.Close())
	}
	if d.journal != nil {
		errs = append(errs, d.journal.Close())
	}
	return errors.Join(errs...)
}

// Status is what crinetctl status shows.
func (d *daemon) Status() admin.Status {
	status := d.manager.View()
	status.Version = version
	d.networks.describe(&status)
	d.describeChain(&status)
	return status
}

// Plugins are what crinetctl probe shows.
func (d *daemon) Plugins() admin.Plugins { return d.networks.plugins() }

// Pods are what crinetctl pods shows.
func (d *daemon) Pods() ([]admin.Pod, error) { return d.manager.Pods() }
