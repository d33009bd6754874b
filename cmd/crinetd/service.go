package main

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/crinet-project/crinet/runtime/watchdog"
)

// notify tells the service manager something, if there is one that listens
// (sd_notify(3)).
func notify(state string) error {
	_, err := daemon.SdNotify(false, state)
	return err
}

// ready tells the service manager that crinetd serves.
func (p *parts) ready() {
	if err := notify(daemon.SdNotifyReady); err != nil {
		p.log.Warn("crinetd has started, but the service manager does not know", "err", err)
	}
}

// stopping waits for the end of ctx and tells the service manager of it.
func (p *parts) stopping(ctx context.Context) {
	<-ctx.Done()
	p.stopAt.Store(time.Now().UnixNano())
	p.log.Info("crinetd is told to end: calls under way may finish", "grace", p.options.ShutdownGrace)
	if err := notify(daemon.SdNotifyStopping); err != nil {
		p.log.Warn("the service manager does not know that crinetd ends", "err", err)
	}
}

// graceLeft is what is left of --shutdown-grace.
func (p *parts) graceLeft() time.Duration {
	grace := max(p.options.ShutdownGrace, time.Millisecond)
	if at := p.stopAt.Load(); at != 0 {
		grace -= time.Since(time.Unix(0, at))
	}
	return max(grace, time.Millisecond)
}

// watch tells the service manager how crinetd is.
func (p *parts) watch(ctx context.Context) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		p.log.Warn("the service manager's watchdog is not served", "err", err)
	}
	watchdog.Run(ctx, watchdog.Config{
		CRI: p.listeners[criSocket].Addr().String(), CNI: p.listeners[cniSocket].Addr().String(), Held: p.held,
		Interval: interval, Notify: notify, Log: p.log, Status: p.summary,
	})
}

// summary is crinetd's state in a line.
func (p *parts) summary() string {
	if err := p.hooks.Ready(); err != nil {
		return fmt.Sprintf("network not ready: %v", err)
	}
	if notice := p.notice(); notice != "" {
		return "network ready; " + notice
	}
	return "network ready"
}
