package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/doctor"
	"github.com/crinet-project/crinet/installer"
	"github.com/crinet-project/crinet/runtime/admin"
)

const installHelp = `Put crinet on this node: containerd gets a CNI conf dir of its own, crinetd becomes a
service whose sockets systemd holds, and the kubelet is pointed at it. Pods that run
are adopted and live on.

The node is looked at first, as crinetctl doctor does: where its kernel, its limits or
the kubelet's flags would keep pods from working, nothing is changed without --force.
Everything that is changed is kept in /var/lib/crinet/install. When a step
fails, everything is made again as it was. Called again, it changes what a later
release changes, or nothing.`

// newInstall makes the command install.
func newInstall(o *options) *cobra.Command {
	var dryRun bool
	settings := installer.Options{}
	c := &cobra.Command{
		Use:   "install",
		Short: "Put crinet on this node",
		Long:  installHelp,
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("crinetd and crinet belong beside crinetctl, which cannot be found: %w", err)
			}
			settings.Source = filepath.Dir(self)
			i := newInstaller(o, settings)
			if !dryRun {
				return i.Install(c.Context())
			}
			plan, err := i.Plan()
			if err != nil {
				return err
			}
			text := plan.String()
			if err := i.Check(c.Context()); err != nil {
				text += "In the way: " + err.Error() + ".\n"
			}
			_, err = fmt.Fprint(o.stdout, text)
			return err
		},
	}
	rootFlag(c, &settings.Root)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be done, and do nothing")
	c.Flags().BoolVar(&settings.Force, "force", false, "install although the node has faults that keep pods from working")
	c.Flags().StringVar(&settings.BinDir, "bin-dir", "/usr/local/bin", "the `DIR` on the node for the programs, where no package has installed them")
	c.Flags().DurationVar(&settings.Wait, "wait", 2*time.Minute, "the `TIME` within which the network must be ready; 0s does not wait, as before a network is deployed")
	return c
}

// newUninstall makes the command uninstall.
func newUninstall(o *options) *cobra.Command {
	settings := installer.Options{}
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take crinet off this node, and give back every file that install changed",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return newInstaller(o, settings).Uninstall(c.Context())
		},
	}
	rootFlag(c, &settings.Root)
	return c
}

// examineBefore says which errors the doctor finds on a node that is to get crinet.
func examineBefore(ctx context.Context, root string) error {
	n, err := newDoctorNode(root, nil)
	if err != nil {
		return err
	}
	checks := doctor.OfConcern(doctor.Checks(), doctor.KernelConcern, doctor.LimitConcern, doctor.KubeletConcern)
	var errs []error
	for _, r := range doctor.Run(ctx, n, checks) {
		// Where the kubelet's socket is not crinetd's, installing mends that.
		if r.Outcome == doctor.Outcome(doctor.Error) && r.Check != "kubelet-endpoint" {
			errs = append(errs, fmt.Errorf("%s: %s (mend: %s)", r.Check, r.Found, r.Mend))
		}
	}
	return errors.Join(errs...)
}

func rootFlag(c *cobra.Command, root *string) {
	c.Flags().StringVar(root, "root", "/", "the `DIR` of the node's tree, such as an image's; services are started where the tree is that of a running node")
}

// newInstaller returns an installer that tells each step on standard output.
func newInstaller(o *options, settings installer.Options) *installer.Installer {
	settings.System = installer.Live(settings.Root)
	settings.Check = func(ctx context.Context) error { return examineBefore(ctx, settings.Root) }
	settings.Trial = func(ctx context.Context) error {
		_, err := admin.NewClient(filepath.Join(settings.Root, "run/crinet/admin.sock")).Try(ctx)
		return err
	}
	settings.Report = func(step string) {
		// Standard output may be gone; the installation goes on.
		_, _ = fmt.Fprintln(o.stdout, "crinetctl:", step)
	}
	return installer.New(settings)
}
