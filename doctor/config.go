package doctor

import (
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/internal/dirs"
)

const configConcern = "configuration"

func configChecks() []Check {
	return []Check{
		{Name: "conf-dir", Looks: "crinetd's conf dir: readable, with a network in it", Severity: Error, run: confDirUsable,
			Why: "without a network configuration no pod gets a network"},
		{Name: "conf-files", Looks: "each configuration file: JSON, names, versions", Severity: Error, run: confFiles,
			After: []string{"conf-dir"}, Why: "the network of a broken file cannot be used"},
		{Name: "conf-choice", Looks: "whether it is plain which of several networks pods get", Severity: Info, run: confChoice,
			After: []string{"conf-dir"}, Why: "a file whose name sorts first becomes every new pod's network"},
		{Name: "network-plugin", Looks: "whether the network that --network-plugin names exists", Severity: Error, run: networkPlugin,
			After: []string{"conf-dir", "conf-files"}, Why: "no pod gets a network"},
		{Name: "plugin-binaries", Looks: "the plugins that the selected network names: there, executable, of this architecture", Severity: Error, run: pluginBinaries,
			After: []string{"conf-dir", "conf-files", "network-plugin"}, Why: "every ADD of the network fails"},
		{Name: "flannel-subnet", Looks: "flanneld's subnet file, where flannel is the network", Severity: Error, run: flannelSubnet,
			After: []string{"conf-dir", "network-plugin"}, Why: "flannel has no addresses for pods before flanneld has written it"},
	}
}

// usesConf is nil when crinetd reads the conf dir.
func (n *Node) usesConf() *Result {
	if n.Options.Noop() {
		r := skip("--network-plugin is %q: the runtime networks pods itself", cmp.Or(n.Options.NetworkPlugin, config.PluginNoop))
		return &r
	}
	return nil
}

func confDirUsable(ctx context.Context, n *Node) Result {
	if r := n.usesConf(); r != nil {
		return *r
	}
	dir := n.Options.CNIConfDir
	found, err := n.confDir(ctx)
	switch {
	case err != nil:
		return unknown("%v", err)
	case errors.Is(found.err, fs.ErrNotExist):
		return bad("mkdir -p "+dir+" and put a network's .conflist there; is --cni-conf-dir right ("+n.OptionsFrom+")?", "%s does not exist", dir)
	case found.err != nil:
		return bad("make it readable for root: ls -ld "+dir, "%s cannot be read: %v", dir, dirs.Cause(found.err))
	case len(found.all)+len(found.broken) == 0:
		return bad("put a network's .conflist into "+dir+"; a cluster's network add-on may not have run yet: kubectl -n kube-system get pods -o wide",
			"%s holds no network configuration", dir)
	}
	return good("%s has %d networks", dir, len(found.all))
}

func confFiles(ctx context.Context, n *Node) Result {
	if r := n.usesConf(); r != nil {
		return *r
	}
	found, err := n.confDir(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if len(found.broken) == 0 {
		return good("%d files can be read", len(found.all))
	}
	file, _, _ := strings.Cut(found.broken[0], ": ")
	r := bad("edit "+file+" and test it: crinetctl validate "+strings.SplitN(file, ":", 2)[0], "%s", few(found.broken))
	if n.selected(ctx) != nil {
		return r.at(Warning).because("another network is used meanwhile, or the file's last good version")
	}
	return r
}

func confChoice(ctx context.Context, n *Node) Result {
	if r := n.usesConf(); r != nil {
		return *r
	}
	found, err := n.confDir(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if n.Options.NetworkPlugin != config.PluginCNI || len(found.all) < 2 {
		return good("there is no doubt: --network-plugin=%s, %d networks", n.Options.NetworkPlugin, len(found.all))
	}
	var names []string
	for _, net := range found.all {
		names = append(names, net.Name+" ("+net.File+")")
	}
	return bad(fmt.Sprintf("if that is chance: --network-plugin=%s in %s", found.all[0].Name, flagsFile), "the first of %d networks is used: %s", len(names), few(names))
}

func networkPlugin(ctx context.Context, n *Node) Result {
	if r := n.usesConf(); r != nil {
		return *r
	}
	found, err := n.confDir(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if net := n.selected(ctx); net != nil {
		return good("pods get network %s (%s)", net.Name, net.File)
	}
	var names []string
	for _, net := range found.all {
		names = append(names, net.Name)
	}
	return bad(fmt.Sprintf("name one that is there in %s, or put its file into %s", n.OptionsFrom, n.Options.CNIConfDir),
		"--network-plugin=%s names no network in %s, which has: %s", n.Options.NetworkPlugin, n.Options.CNIConfDir, cmp.Or(few(names), "none"))
}

// pluginTypes are the executables that a network needs.
func (net *network) pluginTypes() []string {
	var types []string
	for _, p := range slices.Concat(net.Plugins, net.interfaces()) {
		types = append(types, p.Type)
		if p.IPAM.Type != "" && slices.Contains([]string{"bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device"}, p.Type) {
			types = append(types, p.IPAM.Type)
		}
	}
	slices.Sort(types)
	return slices.Compact(types)
}

func pluginBinaries(ctx context.Context, n *Node) Result {
	if r := n.usesConf(); r != nil {
		return *r
	}
	net := n.selected(ctx)
	if net == nil {
		return unknown("no network is selected")
	}
	var faults []string
	missing := false
	types := net.pluginTypes()
	for _, typ := range types {
		var err error
		for _, dir := range n.Options.CNIBinDirs {
			if err = n.executable(dir + "/" + typ); !isMissing(err) {
				break
			}
		}
		switch {
		case isMissing(err):
			missing = true
			faults = append(faults, fmt.Sprintf("plugin %s is not in %s", typ, strings.Join(n.Options.CNIBinDirs, ", ")))
		case err != nil:
			faults = append(faults, err.Error())
		}
	}
	if len(faults) == 0 {
		return good("network %s: %s can be executed", net.Name, strings.Join(types, ", "))
	}
	mend := "install a build for " + runtime.GOARCH + " that is executable (chmod 755)"
	if missing {
		mend = "install it into " + n.Options.CNIBinDirs[0] + " (Debian: containernetworking-plugins in /usr/lib/cni; add that to --cni-bin-dir)"
	}
	return bad(mend, "network %s (%s): %s", net.Name, net.File, few(faults))
}

// machines are the ELF machines of the architectures that crinet is built for.
func machines() map[string]elf.Machine {
	return map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "arm": elf.EM_ARM, "386": elf.EM_386,
		"riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "loong64": elf.EM_LOONGARCH}
}

// executable returns nil for a program that this machine can execute.
func (n *Node) executable(name string) error {
	info, err := os.Stat(n.path(name))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, dirs.Cause(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no file", name)
	case info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable (mode %v)", name, info.Mode().Perm())
	case info.Size() == 0:
		return fmt.Errorf("%s is empty", name)
	}
	file, err := elf.Open(n.path(name))
	if err != nil {
		return nil // a script, which can be executed all the same
	}
	defer file.Close()
	if want, ok := machines()[runtime.GOARCH]; ok && file.Machine != want {
		return fmt.Errorf("%s is built for %v, this machine is %s", name, file.Machine, runtime.GOARCH)
	}
	return nil
}

func flannelSubnet(ctx context.Context, n *Node) Result {
	net := n.selected(ctx)
	if net == nil || !net.has("flannel") {
		return skip("flannel is not the selected network")
	}
	for _, p := range net.Plugins {
		if p.Type != "flannel" {
			continue
		}
		file := cmp.Or(p.SubnetFile, flannelEnv)
		if _, err := n.read(file); err != nil {
			return bad("see whether flanneld runs: kubectl -n kube-flannel get pods -o wide; it writes "+file, "%v", err)
		}
		if p.Delegate != nil && len(p.rangeSets(nil)) == 0 && len(p.Delegate.rangeSets(nil)) == 0 {
			return bad("restart flanneld: it writes "+file, "%s names no FLANNEL_SUBNET", file)
		}
	}
	return good("flanneld has told its subnet")
}
