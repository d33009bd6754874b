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
	// The runtime may be down. Until it says what it is, what an earlier run
	// found out is the best guess.
	if err := d.installFor(i, i.Installed()); err != nil {
		return err
	}
	group.Go(func() error { d.keepInstalled(ctx, i); return nil })
	return nil
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
