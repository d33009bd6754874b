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
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel"
	"google.golang.org/grpc"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/cni/dhcpd"
	"github.com/crinet-project/crinet/cni/headroom"
	"github.com/crinet-project/crinet/cni/keep"
	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/hostport"
	"github.com/crinet-project/crinet/noop"
	"github.com/crinet-project/crinet/probe"
	"github.com/crinet-project/crinet/runtime/cnihook"
	"github.com/crinet-project/crinet/runtime/cri"
	"github.com/crinet-project/crinet/runtime/drift"
	"github.com/crinet-project/crinet/runtime/engine"
	"github.com/crinet-project/crinet/runtime/failpoint"
	"github.com/crinet-project/crinet/runtime/install"
	"github.com/crinet-project/crinet/runtime/journal"
	"github.com/crinet-project/crinet/runtime/proxy"
	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/report"
	"github.com/crinet-project/crinet/runtime/socket"
	"github.com/crinet-project/crinet/runtime/tracing"
	"github.com/crinet-project/crinet/runtime/upstream"
)

// The sockets in --run-dir.
const (
	criSocket   = "cri.sock"
	cniSocket   = "cni.sock"
	adminSocket = "admin.sock"
)

const (
	// bootIDFile tells one boot of the kernel from another (proc(5)).
	bootIDFile = "/proc/sys/kernel/random/boot_id"
	// sysctlRoot is where the noop plugin's sysctls are.
	sysctlRoot = "/proc/sys"
	// netnsDir is where runtimes keep the network namespaces of pods, and where
	// daemons of CNI plugins look for them.
	netnsDir = "/run/netns"
	// candidatePatience bounds the wait for a candidate's plugins to tell their versions.
	candidatePatience = 5 * time.Second
	// lastGoodFile holds the last good configurations, in --state-dir.
	lastGoodFile = "lastgood.json"
	// selectedFile holds which network was selected last, in --state-dir.
	selectedFile = "selected.json"
	// keptDir holds copies of plugins' binaries, in --state-dir.
	keptDir = "plugins"
)

// parts are crinetd's parts. open makes them, in the order of the fields; serve
// runs them.
type parts struct {
	options  *config.Options
	log      *slog.Logger
	registry *prometheus.Registry
	tracing  *tracing.Tracer // nil unless the environment asks for traces

	listeners map[string]net.Listener // by socket name
	held      bool                    // the service manager holds the sockets over a restart
	stopAt    atomic.Int64            // when crinetd was told to end, in ns since 1970; 0 before
	journal   *journal.Journal
	conn      *grpc.ClientConn // to the container runtime
	sandboxes *upstream.Sandboxes
	runtime   *upstream.Watcher
	podCIDRs  *engine.PodCIDRs
	bootID    string
	watcher   *config.Watcher // nil under noop
	selection *config.Selection
	mark      string // environment variable of the plugins that crinetd runs
	dhcp      *dhcpd.Manager
	builtins  *builtin.Plugins
	headroom  *headroom.Counter // nil under noop
	kept      *keep.Store
	recorder  *recorder.Recorder
	chain     *cni.Plugin
	noop      *noop.Plugin // nil unless selected
	hostPorts *hostport.Manager
	engine    *engine.Engine
	keeper    *install.Keeper // nil under noop
	mirror    *install.Mirror // only under noop
	hooks     *cri.Hooks
	proxy     *proxy.Proxy
	cniHook   *cnihook.Server
	report    *report.Source
	drift     *drift.Watcher // nil if nobody looks for drift
}

// open opens the sockets and the journal, and puts the parts together. A second
// crinetd ends here. Nothing is served yet; clients that connect wait.
func open(ctx context.Context, o *config.Options, log *slog.Logger) (p *parts, err error) {
	p = &parts{options: o, log: log, registry: prometheus.NewRegistry(), listeners: make(map[string]net.Listener)}
	for _, step := range []func(context.Context) error{
		p.makeTracing, p.listen, p.openJournal, p.dial, p.openNetworks, p.makeChain, p.makeHostPorts, p.makeEngine, p.makeInstallation, p.makeHooks, p.register,
	} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	return p, nil
}

// close closes what open opened.
func (p *parts) close() error {
	var errs []error
	for _, l := range p.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if p.proxy != nil {
		errs = append(errs, p.proxy.Close())
	}
	if p.conn != nil {
		errs = append(errs, p.conn.Close())
	}
	if p.journal != nil {
		errs = append(errs, p.journal.Close())
	}
	if p.recorder != nil {
		errs = append(errs, p.recorder.Close())
	}
	return errors.Join(errs...)
}

// makeTracing makes what traces pods, if the environment asks for it.
func (p *parts) makeTracing(ctx context.Context) error {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { p.log.Warn("OpenTelemetry", "err", err) }))
	p.tracing = tracing.New(ctx, version, p.log)
	return nil
}

// listen takes the sockets that the service manager passes, and makes the others.
func (p *parts) listen(ctx context.Context) error {
	if err := os.MkdirAll(p.options.RunDir, 0o700); err != nil {
		return fmt.Errorf("--run-dir: %w", err)
	}
	passed, err := socket.Activated(p.log)
	if err != nil {
		return err
	}
	p.held = len(passed) > 0
	for _, name := range []string{criSocket, cniSocket, adminSocket} {
		path := filepath.Join(p.options.RunDir, name)
		l := passed[path]
		delete(passed, path)
		if l == nil {
			if l, err = socket.Listen(ctx, path, p.log); err != nil {
				break
			}
		}
		p.listeners[name] = l
	}
	for path, l := range passed {
		err = errors.Join(err, fmt.Errorf("the service manager passes a socket at %s, which is none of crinetd's in --run-dir=%s; correct the socket unit",
			path, p.options.RunDir), l.Close())
	}
	return err
}

func (p *parts) openJournal(context.Context) (err error) {
	if p.journal, _, err = journal.Open(p.options.StateDir, p.log); err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	if p.mark, err = pluginexec.StateMark(p.options.StateDir); err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	bootID, err := os.ReadFile(bootIDFile)
	if err != nil {
		return fmt.Errorf("boot id: %w", err)
	}
	p.bootID = string(bytes.TrimSpace(bootID))
	p.podCIDRs, err = engine.NewPodCIDRs(p.journal, p.options.PodCIDRs, p.log)
	return err
}

// dial makes the connection to the container runtime, which may be down.
func (p *parts) dial(context.Context) (err error) {
	if p.conn, err = proxy.Dial(p.options.ContainerRuntimeEndpoint); err != nil {
		return err
	}
	p.sandboxes = upstream.NewSandboxes(p.conn)
	p.runtime = upstream.NewWatcher(p.conn, p.options.ContainerRuntimeEndpoint, p.log)
	return nil
}

// openNetworks scans the directories for the first time. Under noop nothing is
// probed or watched.
func (p *parts) openNetworks(ctx context.Context) (err error) {
	o := p.options
	selection := config.SelectionConfig{
		NetworkPlugin: o.NetworkPlugin, Log: p.log, PodCIDRKnown: func() bool { return len(p.podCIDRs.Get()) > 0 },
		File: filepath.Join(o.StateDir, selectedFile), BootID: p.bootID, Wait: o.NetworkWait,
	}
	if o.Noop() {
		p.selection = config.NewSelection(selection)
		return nil
	}
	p.watcher, err = config.NewWatcher(ctx, config.WatcherConfig{
		ConfDir: o.CNIConfDir, Prober: probe.New(o.CNIBinDirs, probe.Config{About: builtin.Types()}), MTU: o.NetworkPluginMTU,
		LastGoodFile: filepath.Join(o.StateDir, lastGoodFile), Log: p.log,
		OnChange: func(s *config.Snapshot) {
			p.selection.Changed(ctx, s)
			p.selectionChanged()
		},
	})
	if err != nil {
		return fmt.Errorf("read the CNI configuration: %w", err)
	}
	selection.Snapshot = p.watcher.Snapshot
	p.selection = config.NewSelection(selection)
	p.selection.Changed(ctx, p.watcher.Snapshot())
	return nil
}

// selectionChanged tells those who look after the selected network.
func (p *parts) selectionChanged() {
	p.chain.SelectionChanged()
	p.dhcp.SelectionChanged()
}

// makeChain makes the CNI network plugin and the keeper of its dhcp daemons.
func (p *parts) makeChain(context.Context) error {
	o := p.options
	p.dhcp = dhcpd.New(dhcpd.Config{
		Log: p.log, RunDir: o.RunDir, Attachments: leases{p},
		Find: func() (string, error) { return cni.FindPlugin("dhcp", o.CNIBinDirs) },
		Selected: func() []byte {
			network, err := p.selection.Selected()
			if err != nil {
				return nil
			}
			return network.ConfList
		},
	})
	p.builtins = builtin.New(p.log)
	p.kept = keep.Open(filepath.Join(o.StateDir, keptDir), p.log)
	p.recorder = recorder.New(recorder.Config{Dir: o.StateDir, Log: p.log, Selected: p.whySelected})
	runs, err := report.NewRuns(p.registry)
	if err != nil {
		return err
	}
	observe := cni.Observers(runs.Observe, p.recorder.Observe)
	if p.tracing != nil {
		observe = cni.Observers(runs.Observe, p.recorder.Observe, p.tracing.Observe)
	}
	p.chain = cni.New(cni.Config{
		BinDirs: o.CNIBinDirs, CacheDir: o.CNICacheDir, Timeout: o.CNITimeout, StatusGrace: o.CNIStatusGrace,
		AwaitStatus: !p.selection.Settled(),
		MaxChains:   o.CNIMaxChains, Selected: p.selection.Selected, PodCIDRs: p.podCIDRs.Get,
		Ready:  func(n *config.Network) error { return p.dhcp.Ready(n.ConfList) },
		Runner: failpoint.Runner(pluginexec.New(pluginexec.Config{Mark: p.mark})), Log: p.log,
		CanMasquerade: func() error { return p.hostPorts.Available() },
		Builtin:       failpoint.Builtin(p.builtins), BuiltinTypes: o.BuiltinPlugins, Observe: observe,
		Keeper:  p.kept,
		Passing: o.CNIPassing, Removals: func() int { return p.engine.Pending() },
	})
	return nil
}

// whySelected returns the file of a network if it is selected now, and why it is.
func (p *parts) whySelected(name string) (file, why string) {
	network, err := p.selection.Selected()
	if err != nil || network.Name != name {
		return "", ""
	}
	return network.File, p.selection.Reason()
}

// mapsHostPorts says whether crinetd maps hostPorts itself.
func (p *parts) mapsHostPorts() bool {
	return !p.options.Noop() && p.options.HostPort == config.HostPortManager
}

func (p *parts) makeHostPorts(context.Context) (err error) {
	heals := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "crinet_hostport_heals_total",
		Help: "Times that the hostPort table was changed by somebody else and put right.",
	})
	p.hostPorts, err = hostport.New(hostport.Config{
		Log: p.log, Conflict: hostport.ConflictMode(p.options.HostPortConflict), Records: p.journal,
		OnDemand: !p.mapsHostPorts(), ProtectedInterfaces: p.options.HostPortProtected, OnHeal: func(string) { heals.Inc() },
	})
	if err != nil {
		return err
	}
	mappings := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "crinet_hostport_mappings",
		Help: "hostPorts that crinetd maps.",
	}, func() float64 { _, n := p.hostPorts.Count(); return float64(n) })
	return errors.Join(p.registry.Register(heals), p.registry.Register(mappings))
}

func (p *parts) makeEngine(context.Context) error {
	o := p.options
	metrics, err := engine.NewMetrics(p.registry)
	if err != nil {
		return err
	}
	c := engine.Config{
		Log: p.log, Plugin: p.chain, Journal: failpoint.Journal(p.journal), Sandboxes: p.sandboxes,
		PodCIDRs: p.podCIDRs, Metrics: metrics, BootID: p.bootID,
		HostPorts: failpoint.HostPorts(p.hostPorts), MapHostPorts: p.mapsHostPorts(),
		PassPortMappings: o.HostPort == config.HostPortPlugin, StatusUnderWay: p.chain.StatusUnderWay,
		Namespaces: namespaces{}, FailedAdds: o.CNIFailedAdds, Critical: o.Critical, Recorder: p.recorder,
	}
	if o.Noop() {
		// The CNI plugin undoes what an earlier run set up.
		p.noop = noop.New(sysctlRoot, p.log)
		c.Plugin, c.Others = p.noop, []engine.NetworkPlugin{p.chain}
	} else {
		c.Cache, c.GC, c.GCInterval = p.chain, p.chain, o.CNIGCInterval
		c.RuntimeCache = p.chain.ForeignCache(o.RuntimeCNICacheDir)
	}
	if p.tracing != nil {
		c.Follow = p.tracing.Follow
	}
	if o.HairpinMode == config.HairpinVeth {
		c.Hairpin = failpoint.Hairpin(func(ctx context.Context, a *cni.Attachment) error {
			if !hostport.HairpinFor(a.ConfList) {
				return nil
			}
			_, err := hostport.SetHairpin(ctx, a.NetNS, a.IfName, 0)
			return err
		})
	}
	p.engine = engine.New(c)
	if !o.Noop() {
		p.headroom = headroom.New(headroom.Config{
			Log: p.log, Next: p.engine.Next, Attachments: p.engine.Attachments, Sandboxes: p.sandboxes.List,
		})
	}
	return nil
}

// makeInstallation makes what keeps crinet's CNI configuration at the runtime.
func (p *parts) makeInstallation(context.Context) error {
	o := p.options
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("the crinet plugin belongs beside crinetd, which cannot be found: %w", err)
	}
	c := install.Config{
		Log: p.log, Runtime: p.runtime, ConfDir: o.RuntimeCNIConfDir, BinDir: o.RuntimeCNIBinDir, Handlers: o.RuntimeHandlers,
		Shim:   filepath.Join(filepath.Dir(self), install.PluginName),
		Socket: filepath.Join(o.RunDir, cniSocket), NetworkConfDir: o.CNIConfDir,
	}
	if o.Noop() {
		p.mirror = install.NewMirror(c)
	} else {
		p.keeper = install.NewKeeper(c)
	}
	return nil
}

func (p *parts) makeHooks(context.Context) (err error) {
	p.report = &report.Source{
		Version: version, Plugin: p.chain.Name(), Engine: p.engine, PodCIDRs: p.podCIDRs, Selection: p.selection,
		Watcher: p.watcher, Chain: p.chain, DHCP: p.dhcp, Runtime: p.runtime, Keeper: p.keeper, Notice: p.notice, Headroom: p.headroom,
		MTU: p.options.NetworkPluginMTU, Probe: p.probeFor,
		Recorder: p.recorder, Table: p.hostPorts, Hairpin: p.options.HairpinMode == config.HairpinVeth && !p.options.Noop(),
	}
	if p.mapsHostPorts() {
		p.report.HostPorts = p.hostPorts
	}
	metrics, err := cri.NewMetrics(p.registry)
	if err != nil {
		return err
	}
	c := cri.Config{
		Log: p.log, Engine: p.engine, Runtime: p.runtime, PodCIDRs: p.podCIDRs, Metrics: metrics, Remove: p.sandboxes.Remove,
		Noop: p.options.Noop(), Notice: p.notice, View: func() any { return p.report.Status() }, Recorder: p.recorder,
	}
	if err := p.makeDrift(); err != nil {
		return err
	}
	if p.drift != nil && p.options.Drift == config.DriftRecreate {
		c.Remaking = p.drift.Remaking
	}
	if p.keeper != nil {
		c.Installation = p.keeper
	}
	if p.headroom != nil {
		c.Addresses = func() (string, error) {
			return p.headroom.Refusal(func() bool { return p.chain.Removing() || p.engine.Removing() })
		}
	}
	if p.noop != nil {
		p.report.Plugin = p.noop.Name()
	}
	p.hooks = cri.New(c)
	p.report.Ready = p.hooks.Ready
	hook := cnihook.Config{Handler: p.tracing.Handler(p.engine), Log: p.log, Mark: p.mark, Send: failpoint.Send(), Grace: p.graceLeft}
	if p.tracing != nil {
		hook.Trace = p.tracing.Remote
	}
	if p.cniHook, err = cnihook.New(hook); err != nil {
		return err
	}
	p.proxy, err = proxy.New(proxy.Config{
		RuntimeEndpoint: p.options.ContainerRuntimeEndpoint, Runtime: p.conn, ImageEndpoint: p.options.ImageServiceEndpoint,
		Hooks: p.tracing.Hooks(failpoint.Hooks(p.hooks.Methods())), Log: p.log, Observe: metrics.ObserveCall,
		Drain: cri.Drained(), Grace: max(p.options.ShutdownGrace, time.Millisecond),
	})
	return err
}

// makeDrift makes what looks for drift.
func (p *parts) makeDrift() error {
	o := p.options
	if o.Noop() || o.DriftInterval == 0 {
		return nil
	}
	metrics, err := drift.NewMetrics(p.registry)
	if err != nil {
		return err
	}
	p.drift = drift.New(drift.Config{
		Log: p.log, Engine: p.engine, Meta: p.journal, Metrics: metrics, Subjects: p.report.Subjects, HasSandbox: p.sandboxes.Has,
		Recheck: p.hostPorts.Recheck, Mode: drift.Mode(o.Drift), Interval: o.DriftInterval, CheckInterval: o.DriftCheckInterval,
	})
	p.report.Drift, p.report.DriftMode = p.drift, o.Drift
	return nil
}

// probeFor looks at the plugins of a network that is not in the conf dir.
func (p *parts) probeFor(types []string) (*probe.Plugins, error) {
	prober := probe.New(p.options.CNIBinDirs, probe.Config{About: builtin.Types()})
	defer prober.Stop()
	return prober.Probe(context.Background(), types, candidatePatience)
}

// notice is what an operator should know although the network is ready.
func (p *parts) notice() string {
	notices := []string{p.engine.Notice(), p.selection.Notice()}
	if p.headroom != nil {
		notices = slices.Insert(notices, 0, p.headroom.Notice())
	}
	if p.keeper != nil {
		notices = append(notices, p.keeper.Notice())
	}
	return strings.Join(slices.DeleteFunc(notices, func(s string) bool { return s == "" }), "; ")
}

// register registers the metrics that are read where they are kept.
func (p *parts) register(context.Context) error {
	return errors.Join(
		p.engine.Register(p.registry),
		p.hooks.Register(p.registry),
		p.report.Register(p.registry),
		p.registry.Register(collectors.NewGoCollector()),
		p.registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	)
}
