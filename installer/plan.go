package installer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/crinet-project/crinet/packaging"
)

// Plan is what installing does to a node.
type Plan struct {
	Kind     string // what runs the node's pods: containerd, or k3s or rke2 with theirs
	Endpoint string // of the container runtime
	Notes    []string

	changes        []change
	dirs           []string // that must be there
	restartRuntime []string // units
	restartKubelet []string // units
	manifest       *manifest
}

// planner makes a Plan.
type planner struct {
	*Plan
	root     *tree
	binDir   string
	packaged bool // a package put programs and units on the node
}

// Plan looks at the node and says what is to be done. The error names everything that
// is in the way, and what to do about it.
func (i *Installer) Plan() (*Plan, error) {
	m, err := i.root.readManifest()
	if err != nil {
		return nil, err
	}
	p := &planner{Plan: &Plan{manifest: m, Kind: "containerd", Endpoint: defaultRuntime}, root: i.root, binDir: i.BinDir}
	steps := []func() error{p.planContainerd, p.planKubelet}
	for _, name := range []string{"k3s", "rke2"} {
		if len(p.embeddedUnits(name)) > 0 {
			p.Kind = name
			steps = []func() error{func() error { return p.planEmbedded(name) }}
		}
	}
	steps = append(steps, func() error { return p.planPrograms(i.Source) }, p.planService)
	var errs []error
	for _, step := range steps {
		errs = append(errs, step())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p.Plan, nil
}

func (p *planner) original(name string) (file, error) { return p.root.original(p.manifest, name) }

func (p *planner) add(name string, after file, why string) {
	p.changes = append(p.changes, change{Path: name, After: after, Why: why})
}

func (p *planner) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

func (p *planner) problem(format string, args ...any) error { return fmt.Errorf(format, args...) }

// planPrograms puts the programs on the node, unless a package did.
func (p *planner) planPrograms(source string) error {
	packaged, err := p.original(packagedUnit)
	if err != nil {
		return err
	}
	if packaged.Exists {
		p.packaged, p.binDir = true, "/usr/bin"
		return nil
	}
	for _, name := range []string{"crinetd", "crinet", "crinetctl"} {
		program, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return fmt.Errorf("crinetd, crinet and crinetctl belong into one folder: %w", err)
		}
		p.add(p.binDir+"/"+name, file{Exists: true, Text: program, Mode: 0o755}, "the program")
	}
	return nil
}

// planService makes crinetd a service with the flags of this node.
func (p *planner) planService() error {
	if !p.packaged {
		for _, name := range []string{"crinetd.socket", "crinetd.service"} {
			unit, err := packaging.Units.ReadFile("systemd/" + name)
			if err != nil {
				return err
			}
			p.add(unitDir+"/"+name, text(strings.ReplaceAll(string(unit), "=/usr/bin/", "="+p.binDir+"/")), "the unit")
		}
	}
	target := unitDir
	if p.packaged {
		target = filepath.Dir(packagedUnit)
	}
	p.add(unitDir+"/sockets.target.wants/crinetd.socket", link(target+"/crinetd.socket"), "the sockets are made at boot")
	p.add(unitDir+"/multi-user.target.wants/crinetd.service", link(target+"/crinetd.service"), "crinetd is started at boot")
	own, err := p.original(flagsFile)
	if err != nil {
		return err
	}
	if own.Exists {
		p.note("%s is there already, and its flags are used as they are", flagsFile)
		return nil
	}
	flags := []string{"--network-plugin=cni"}
	if p.Endpoint != defaultRuntime {
		flags = append(flags, "--container-runtime-endpoint="+p.Endpoint)
	}
	if p.Kind == "k3s" {
		flags = append(flags, "--cni-conf-dir=/var/lib/rancher/k3s/agent/etc/cni/net.d", "--cni-bin-dir=/var/lib/rancher/k3s/data/cni,/opt/cni/bin")
	}
	p.add(flagsFile, text("# Flags of crinetd; see crinetd(8). Written by crinetctl install.\nCRINETD_FLAGS="+strings.Join(flags, " ")+"\n"), "crinetd's flags")
	return nil
}

// String describes the plan, a line a step.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "This is a node with %s.\n", p.Kind)
	for _, note := range p.Notes {
		fmt.Fprintf(&b, "Note: %s.\n", note)
	}
	for _, c := range p.changes {
		fmt.Fprintf(&b, "Write %s: %s.\n", c.Path, c.Why)
	}
	for _, unit := range p.restartRuntime {
		fmt.Fprintf(&b, "Restart %s; its pods live on.\n", unit)
	}
	b.WriteString("Start crinetd, and wait until it says that the network is ready.\n")
	for _, unit := range p.restartKubelet {
		fmt.Fprintf(&b, "Restart %s; pods live on.\n", unit)
	}
	return b.String()
}
