package installer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// giveBackTimeout bounds what is done after a failure.
const giveBackTimeout = 2 * time.Minute

// networkPlugin is crinetd's flag.
var networkPlugin = regexp.MustCompile(`--network-plugin=[^\s"']+`)

// session is one installation under way, with all that is needed to undo it.
type session struct {
	*Installer
	plan    *Plan
	todo    []change
	before  map[string]file // what the todo's paths were
	old     *manifest
	dirs    []string // that were made
	started bool     // crinetd was, or may have been
	runtime bool     // so was the runtime, anew
	kubelet bool     // and the kubelet
}

// step is one step of an installation.
type step struct {
	name string
	do   func(context.Context) error
}

// Install installs crinet, or brings an installation up to date. When a step fails
// everything is made again as it was, and the error says which step it was.
func (i *Installer) Install(ctx context.Context) error {
	plan, err := i.Plan()
	if err != nil {
		return err
	}
	s := &session{Installer: i, plan: plan, before: make(map[string]file), old: plan.manifest.clone()}
	for _, c := range plan.changes {
		now, err := i.root.read(c.Path)
		if err != nil {
			return err
		}
		if !now.equal(c.After) {
			s.before[c.Path] = now
			s.todo = append(s.todo, c)
		}
	}
	if len(s.todo) == 0 {
		i.Report("everything is installed already")
		return nil
	}
	if err := i.examine(ctx); err != nil {
		return err
	}
	for _, step := range s.steps() {
		i.Report(step.name)
		if err := step.do(ctx); err != nil {
			err = fmt.Errorf("%s: %w", step.name, err)
			return errors.Join(err, s.giveBack(ctx))
		}
	}
	i.Report("installed")
	return nil
}

// examine has the node looked at.
func (i *Installer) examine(ctx context.Context) error {
	if i.Check == nil {
		return nil
	}
	i.Report("look at the node")
	err := i.Check(ctx)
	if err != nil && i.Force {
		i.Report("installed all the same: " + err.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("nothing was changed: %w; mend it, or force the installation", err)
	}
	return nil
}

// steps are the steps of the installation, in their order.
func (s *session) steps() []step {
	steps := []step{{"keep a copy of what is changed in " + stateDir, s.keep}}
	for _, c := range s.todo {
		steps = append(steps, step{"write " + c.Path, func(context.Context) error { return s.write(c.Path, c.After) }})
	}
	for _, dir := range s.plan.dirs {
		steps = append(steps, step{"make " + dir, func(context.Context) error { return s.mkdir(dir) }})
	}
	steps = append(steps, step{"keep the list of folders that were made", func(context.Context) error { return s.root.writeManifest(s.plan.manifest) }})
	if s.System == nil {
		return steps
	}
	return append(steps, s.serviceSteps()...)
}

// serviceSteps start what has changed.
func (s *session) serviceSteps() []step {
	systemctl := func(name string, begun *bool, args ...string) step {
		return step{name, func(ctx context.Context) error { *begun = true; return s.System.Systemctl(ctx, args...) }}
	}
	reloaded := false
	steps := []step{systemctl("have systemd read the units", &reloaded, "daemon-reload")}
	if s.changed("/containerd/") {
		for _, unit := range s.plan.restartRuntime {
			steps = append(steps, systemctl("restart "+unit, &s.runtime, "restart", unit))
		}
	}
	steps = append(steps, systemctl("start crinetd's sockets", &s.started, "start", "crinetd.socket"),
		systemctl("start crinetd", &s.started, "restart", "crinetd.service"))
	if s.Wait > 0 {
		steps = append(steps, step{"wait until the network is ready", s.await})
	}
	if s.Wait > 0 && s.Trial != nil {
		steps = append(steps, step{"attach a throwaway network", s.Trial})
	}
	if s.changed("kubelet", "/rancher/") {
		for _, unit := range s.plan.restartKubelet {
			steps = append(steps, systemctl("restart "+unit, &s.kubelet, "restart", unit),
				systemctl("see that "+unit+" runs", &s.kubelet, "is-active", "--quiet", unit))
		}
	}
	return steps
}

// changed says whether a path that is to be changed has one of these parts.
func (s *session) changed(parts ...string) bool {
	return slices.ContainsFunc(s.todo, func(c change) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(c.Path, part) })
	})
}

// keep stores the manifest before anything is changed.
func (s *session) keep(context.Context) error {
	m := s.plan.manifest
	m.Endpoint = s.plan.Endpoint
	for _, c := range s.plan.changes {
		before, err := s.root.original(s.old, c.Path)
		if err != nil {
			return err
		}
		m.Files[c.Path] = changed{Before: before, After: c.After}
	}
	return s.root.writeManifest(m)
}

func (s *session) write(name string, f file) error {
	made, err := s.root.write(name, f)
	s.made(made)
	return err
}

func (s *session) mkdir(dir string) error {
	made, err := s.root.mkdir(dir)
	s.made(made)
	return err
}

func (s *session) made(dirs []string) {
	s.dirs = append(s.dirs, dirs...)
	s.plan.manifest.made(dirs)
}

// await waits until crinetd answers the kubelet that the network is ready.
func (s *session) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.Wait)
	defer cancel()
	for {
		err := s.System.Answers(ctx, strings.TrimPrefix(criEndpoint, "unix://"))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", s.Wait, err)
		case <-time.After(time.Second):
		}
	}
}

// giveBack makes everything as it was before this installation.
func (s *session) giveBack(ctx context.Context) error {
	s.Report("this failed: everything is made again as it was")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTimeout)
	defer cancel()
	first := len(s.old.Files) == 0
	var errs []error
	if s.started && first {
		errs = append(errs, s.withdraw(ctx))
	}
	for _, c := range slices.Backward(s.todo) {
		_, err := s.root.write(c.Path, s.before[c.Path])
		errs = append(errs, err)
	}
	_, err := s.root.write(manifestFile, file{})
	if !first {
		err = s.root.writeManifest(s.old)
	}
	made := &manifest{Dirs: append(s.plan.manifest.Dirs, s.dirs...)}
	made.Dirs = slices.DeleteFunc(made.Dirs, func(dir string) bool { return slices.Contains(s.old.Dirs, dir) })
	errs = append(errs, err, s.root.removeDirs(made))
	if s.System != nil {
		errs = append(errs, s.startAgain(ctx, first))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("besides, not everything is as it was: %w", err)
	}
	return nil
}

// startAgain starts with the old files what ran with the new ones.
func (s *session) startAgain(ctx context.Context, first bool) error {
	errs := []error{s.System.Systemctl(ctx, "daemon-reload")}
	if s.runtime {
		errs = append(errs, s.restart(ctx, s.plan.restartRuntime))
	}
	if s.started && !first {
		errs = append(errs, s.restart(ctx, []string{"crinetd.service"}))
	}
	if s.kubelet {
		errs = append(errs, s.restart(ctx, s.plan.restartKubelet))
	}
	return errors.Join(errs...)
}

func (i *Installer) restart(ctx context.Context, units []string) error {
	var errs []error
	for _, unit := range units {
		errs = append(errs, i.System.Systemctl(ctx, "restart", unit))
	}
	return errors.Join(errs...)
}

// withdraw has crinetd take its files away from the runtime, and ends it. Started under
// noop it hands the pods back to the runtime.
func (i *Installer) withdraw(ctx context.Context) error {
	flags, err := i.root.read(flagsFile)
	if err != nil {
		return err
	}
	_, err = i.root.write(flagsFile, file{Exists: true, Text: networkPlugin.ReplaceAll(flags.Text, []byte("--network-plugin=noop")), Mode: 0o644})
	if err == nil {
		err = i.System.Systemctl(ctx, "restart", "crinetd.service")
	}
	_, backErr := i.root.write(flagsFile, flags)
	return errors.Join(err, backErr, i.System.Systemctl(ctx, "stop", "crinetd.socket", "crinetd.service"),
		removeAll(filepath.Join(i.Root, confDir)))
}
