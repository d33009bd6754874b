package installer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
)

// ownConfDir is the setting by which containerd reads its own CNI conf dir.
var ownConfDir = regexp.MustCompile(`(?m)^\s*conf_dir\s*=\s*["']` + regexp.QuoteMeta(confDir) + `["']\s*\n`)

// Uninstall gives the node back: crinetd hands its pods to the runtime and ends, and
// every file that installing changed is as it was. A file that somebody changed since
// stays as it is, but for what names crinet. Without an installation it does nothing.
func (i *Installer) Uninstall(ctx context.Context) error {
	m, err := i.root.readManifest()
	if err != nil {
		return err
	}
	if len(m.Files) == 0 {
		i.Report("nothing is installed")
		return nil
	}
	plan, planErr := i.Plan() // for the units; the node may have changed
	var errs []error
	if i.System != nil {
		i.Report("hand the pods back to the runtime and end crinetd")
		errs = append(errs, i.withdraw(ctx))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		i.Report("give back " + name)
		errs = append(errs, i.restore(name, m))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall: %w; call it again", err)
	}
	m.Files = nil
	if err := i.root.writeManifest(m); err != nil {
		return err
	}
	if i.System != nil {
		errs = append(errs, i.System.Systemctl(ctx, "daemon-reload"))
		if planErr == nil {
			i.Report("restart the runtime and the kubelet; pods live on")
			errs = append(errs, i.restart(ctx, append(plan.restartRuntime, plan.restartKubelet...)))
		} else {
			errs = append(errs, fmt.Errorf("restart the runtime and the kubelet yourself: %w", planErr))
		}
	}
	i.Report("uninstalled")
	return errors.Join(errs...)
}

// restore gives one file back.
func (i *Installer) restore(name string, m *manifest) error {
	now, err := i.root.read(name)
	if err != nil {
		return err
	}
	back := m.Files[name].Before
	if !now.equal(m.Files[name].After) {
		if back = withoutCrinet(now, m.Endpoint); back.equal(now) {
			return nil
		}
		i.Report(name + " was changed since: only what names crinet is taken out")
	}
	_, err = i.root.write(name, back)
	return err
}

// withoutCrinet takes out of a file what names crinet.
func withoutCrinet(f file, endpoint string) file {
	f.Text = bytes.ReplaceAll(f.Text, []byte(criEndpoint), []byte(endpoint))
	f.Text = ownConfDir.ReplaceAll(f.Text, nil)
	return f
}

// removeAll removes a folder of crinet's own, with what crinetd has put into it.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	var errs []error
	for _, entry := range entries {
		errs = append(errs, os.Remove(dir+"/"+entry.Name()))
	}
	return errors.Join(errs...)
}
