package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/internal/backoff"
	"github.com/crinet-project/crinet/runtime/admin"
)

// orphanTimeout bounds the wait for the end of plugins that an earlier crinetd
// left running.
const orphanTimeout = 2 * time.Second

// lastTraces bounds the time for the traces that are not sent yet at the end.
const lastTraces = 2 * time.Second

const (
	// firstAnswer bounds the wait for the runtime's first answer at the start.
	firstAnswer = 2 * time.Second
	// firstLoad bounds the wait for the runtime to load crinet's configuration.
	firstLoad = time.Second
)

// serve recovers, makes the node ready and serves until ctx ends or a part fails.
// The order matters: crinetd serves the runtime's calls before it asks the runtime,
// whose answer may wait for crinet's answer to STATUS. It serves the kubelet last.
//
// It ends in the opposite order: first the kubelet's calls, which need all that is
// below them, then the runtime's, then the parts that those need.
func (p *parts) serve(ctx context.Context) error {
	if err := p.recover(ctx); err != nil {
		return err
	}
	all, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, all := errgroup.WithContext(all)
	endHook, err := p.start(all, group)
	if err != nil {
		end()
		endHook()
		return errors.Join(err, group.Wait())
	}
	p.log.Info("crinetd serves", "version", version, "plugin", p.report.Plugin, "runDir", p.options.RunDir)
	p.ready()
	told, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(all, cancel)() // a part that fails ends the others
	group.Go(func() error { p.stopping(told); return nil })
	group.Go(func() error { p.watch(told); return nil })
	group.Go(func() error {
		defer end()
		defer endHook()
		return p.proxy.Serve(told, p.listeners[criSocket])
	})
	err = group.Wait()
	if lost := p.tracing.Close(context.WithoutCancel(ctx), min(p.graceLeft(), lastTraces)); lost != nil {
		p.log.Warn("the last traces are not sent", "err", lost)
	}
	p.log.Info("crinetd ends")
	return err
}

// start starts all parts but those that answer the kubelet. They run until ctx
// ends; what serves the runtime runs until endHook is called, also after an error.
func (p *parts) start(ctx context.Context, group *errgroup.Group) (endHook func(), err error) {
	endHook = func() {}
	run := func(part func(context.Context)) {
		group.Go(func() error { part(ctx); return nil })
	}
	if p.noop != nil {
		ready := make(chan struct{})
		run(func(ctx context.Context) { p.noop.Run(ctx, ready) })
		<-ready
	} else {
		group.Go(func() error { return p.watcher.Run(ctx) })
		run(func(ctx context.Context) { p.selection.Run(ctx, p.selectionChanged) })
		run(p.chain.RunStatus)
	}
	run(p.dhcp.Run)
	run(p.builtins.Run)
	run(func(ctx context.Context) { p.kept.Run(ctx, p.keptInUse) })
	if err := p.serveHostPorts(ctx, run); err != nil {
		return endHook, err
	}
	run(p.engine.Run)
	if p.drift != nil {
		run(p.drift.Run)
	}
	if p.headroom != nil {
		run(p.headroom.Run)
	}
	endHook = p.serveRuntime(ctx, group)
	run(p.runtime.Run)
	p.install(ctx, run)
	return endHook, p.serveOperators(ctx, group)
}

// keptInUse are the copies of binaries that attachments need.
func (p *parts) keptInUse() (map[string]bool, error) {
	records, err := p.engine.Records()
	used := make(map[string]bool)
	for _, r := range records {
		for _, hash := range r.Attachment.Kept {
			used[hash] = true
		}
	}
	return used, err
}

// install puts crinet's files where the runtime says that it looks, or under noop
// takes them away. If the runtime is down, that happens when it is back.
func (p *parts) install(ctx context.Context, run func(func(context.Context))) {
	answered, cancel := context.WithTimeout(ctx, firstAnswer)
	answer := p.runtime.Status(answered)
	cancel()
	if p.mirror != nil {
		p.mirror.Keep()
		run(p.mirror.Run)
		return
	}
	p.keeper.Keep()
	loaded, cancel := context.WithTimeout(ctx, firstLoad)
	defer cancel()
	for answer.Facts != nil && p.keeper.Ready() != nil && backoff.Sleep(loaded, 20*time.Millisecond) {
		p.keeper.Keep()
	}
	run(p.keeper.Run)
}

// recover kills the plugins that an earlier crinetd left running when it died, so
// that they do not go on while their work is undone. Then the engine recovers.
func (p *parts) recover(ctx context.Context) error {
	records, err := p.engine.Records()
	if err != nil {
		return err
	}
	attached := make(map[string]bool)
	for _, r := range records {
		attached[r.Attachment.ContainerID] = p.engine.Stands(r)
	}
	ctx, cancel := context.WithTimeout(ctx, orphanTimeout)
	defer cancel()
	killed, err := pluginexec.KillOrphans(ctx, p.mark, func(verb, id string) bool {
		return verb == "ADD" && attached[id] // a daemon that a plugin started for a pod
	})
	if len(killed) > 0 {
		p.log.Warn("plugins that an earlier crinetd had left running were killed", "processes", killed)
	}
	if err != nil {
		p.log.Error("a plugin of an earlier crinetd still runs and may set up again what crinetd removes now; a reboot ends it", "err", err)
	}
	return p.engine.Recover()
}

// serveHostPorts makes the kernel's table equal to the journal and keeps it so. Where
// crinetd does not map hostPorts, the table is there for pods that it masquerades, and
// what an earlier run left goes. On a node that cannot have the table, pods that need
// it are refused and all others are served.
func (p *parts) serveHostPorts(ctx context.Context, run func(func(context.Context))) error {
	pods, err := p.engine.MappedPods()
	if err != nil {
		return fmt.Errorf("hostPorts: %w", err)
	}
	if err := p.hostPorts.Sync(ctx, pods); err != nil {
		p.log.Error("the table inet crinet is not as it should be; pods that need it may be refused", "err", err)
	}
	run(p.hostPorts.Run)
	return nil
}

// serveRuntime serves the runtime's calls until end is called, which waits for
// those under way. They must be served as long as the kubelet's: those that finish
// in the grace need them.
func (p *parts) serveRuntime(ctx context.Context, group *errgroup.Group) (end func()) {
	hookCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	group.Go(func() error {
		defer close(ended)
		return p.cniHook.Serve(hookCtx, p.listeners[cniSocket])
	})
	return func() {
		cancel()
		<-ended
	}
}

// serveOperators serves admin.sock, and metrics over TCP if they are asked for.
func (p *parts) serveOperators(ctx context.Context, group *errgroup.Group) error {
	metrics := promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{})
	group.Go(func() error {
		return admin.Serve(ctx, p.listeners[adminSocket], admin.Handler(p.report, metrics, p.log))
	})
	addr := p.options.MetricsBindAddress
	if addr == "" {
		return nil
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("--metrics-bind-address: %w", err)
	}
	group.Go(func() error { return admin.Serve(ctx, l, metrics) })
	return nil
}
