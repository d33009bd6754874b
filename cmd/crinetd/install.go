package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"google.golang.org/grpc"

	"github.com/crinet-project/crinet/runtime/install"
)

// installInterval is how often the runtime is asked for its version, and its
// CNI configuration is seen to be crinet's.
const installInterval = 5 * time.Second

// firstTimeout bounds the question at start, which serving waits for.
const firstTimeout = 2 * time.Second

// askTimeout bounds one question for the version of a runtime that is up.
const askTimeout = 10 * time.Second

// install points the runtime at crinet and keeps it so; under noop it takes away
// what pointed there.
func (d *daemon) install(ctx context.Context, group *errgroup.Group) error {
	o := d.options
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("the crinet plugin belongs beside crinetd, which cannot be found: %w", err)
	}
	i := install.Installer{
		ConfDir: o.RuntimeCNIConfDir, BinDir: o.RuntimeCNIBinDir,
		Shim:   filepath.Join(filepath.Dir(self), install.PluginName),
		Socket: filepath.Join(o.RunDir, cniSocket),
	}
	if d.noop != nil {
		changed, err := i.Remove()
		if changed {
			d.log.Info("noop: crinet's CNI configuration is removed, the runtime uses its own", "dir", o.RuntimeCNIConfDir)
		}
		return err
	}
	if err := d.installFor(i, d.firstVersion(ctx, i)); err != nil {
		return err
	}
	group.Go(func() error { d.keepInstalled(ctx, i); return nil })
	return nil
}

// firstVersion is the CNI version to begin with: what an earlier run found out,
// or what the runtime says now. It may be down, and then the oldest must do until
// it is up. Guessing and correcting it at once would be worse than asking: every
// change has containerd read its conf dir anew, and an ADD that hangs at that
// moment would hold up all others.
func (d *daemon) firstVersion(ctx context.Context, i install.Installer) string {
	if cniVersion, ok := i.Installed(); ok {
		return cniVersion
	}
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	v, err := runtimeapi.NewRuntimeServiceClient(d.proxy.Upstream()).Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		d.log.Info("the container runtime does not answer yet", "endpoint", d.options.ContainerRuntimeEndpoint, "err", err)
	}
	return install.CNIVersion(v.GetRuntimeName(), v.GetRuntimeVersion())
}

// keepInstalled asks the runtime for its version, as soon as it is up and again
// and again, and installs what that version understands.
func (d *daemon) keepInstalled(ctx context.Context, i install.Installer) {
	client := runtimeapi.NewRuntimeServiceClient(d.proxy.Upstream())
	failed := false
	for {
		askCtx, cancel := context.WithTimeout(ctx, askTimeout)
		v, err := client.Version(askCtx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !failed:
			d.log.Warn("the container runtime does not answer; crinetd goes on asking", "endpoint", d.options.ContainerRuntimeEndpoint, "err", err)
		case err == nil && failed:
			d.log.Info("the container runtime answers again", "runtime", v.GetRuntimeName(), "version", v.GetRuntimeVersion())
		}
		failed = err != nil
		if err == nil {
			if err := d.installFor(i, install.CNIVersion(v.GetRuntimeName(), v.GetRuntimeVersion())); err != nil {
				d.log.Error("the runtime may not find crinet", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(installInterval):
		}
	}
}

func (d *daemon) installFor(i install.Installer, cniVersion string) error {
	changed, err := i.Install(cniVersion)
	if changed {
		d.log.Info("the runtime's CNI configuration is crinet's", "file", filepath.Join(i.ConfDir, install.ConfListName), "cniVersion", cniVersion)
	}
	return err
}
