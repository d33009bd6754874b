package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/crinet-project/crinet/probe"
)

// ScanOptions are what a Scan depends on besides the directories.
type ScanOptions struct {
	// MTU is written as "mtu" into each plugin's configuration that has none;
	// 0 writes nothing.
	MTU int
}

// Scan makes a snapshot of what the conf dir holds and the plugins that were
// found. prev, which may be nil, is where the last good versions of broken
// files come from. It is a pure function.
func Scan(dir *Dir, plugins *probe.Plugins, prev *Snapshot, opts ScanOptions) *Snapshot {
	var last map[string]*parsed
	if prev != nil {
		last = prev.good
	}
	return load(dir, last).snapshot(plugins, opts)
}

// snapshot puts configurations and plugins together.
func (l *loaded) snapshot(plugins *probe.Plugins, opts ScanOptions) *Snapshot {
	s := &Snapshot{Dir: l.dir, DirReason: l.reason, Plugins: plugins, good: l.good(), waits: make(map[string]string)}
	for _, f := range l.files {
		s.add(f, opts)
	}
	return s
}

// add adds one file.
func (s *Snapshot) add(f loadedFile, opts ScanOptions) {
	p, stale := f.parsed, ""
	if f.bad != nil {
		problem := Problem{Kind: ProblemBroken, File: f.bad.path, Line: f.bad.line, Col: f.bad.col, Reason: f.bad.reason}
		if p != nil {
			stale = problem.String()
			problem.Kind, problem.Network = ProblemStale, p.name
			problem.Reason += "; its last good version is used"
		}
		s.Problems = append(s.Problems, problem)
	}
	if p == nil {
		return
	}
	report := func(kind ProblemKind, reason string) {
		s.Problems = append(s.Problems, Problem{Kind: kind, File: f.path, Network: p.name, Reason: reason})
	}
	if p.loop != "" {
		report(ProblemOwn, p.loop)
		return
	}
	n, reason := p.network(s.Plugins, opts)
	if reason != "" {
		report(ProblemUnusable, reason)
		s.waits[f.path] = p.absent(s.Plugins)
		return
	}
	for _, other := range s.Networks {
		if other.Name == n.Name {
			report(ProblemDuplicate, fmt.Sprintf("has the network name %s, as %s before it", n.Name, filepath.Base(other.File)))
			return
		}
	}
	n.File, n.Stale = f.path, stale
	s.Networks = append(s.Networks, n)
	for _, w := range p.warnings(s.Plugins) {
		report(ProblemWarning, w)
	}
}

// network returns the usable network of a configuration, or why there is none.
func (p *parsed) network(plugins *probe.Plugins, opts ScanOptions) (n *Network, reason string) {
	cniVersion, reasons := p.choose(plugins)
	if len(reasons) > 0 {
		return nil, strings.Join(reasons, "; ")
	}
	n = &Network{Name: p.name, CNIVersion: cniVersion, Capabilities: p.capabilities(), NeedsPodCIDR: p.needsPodCIDR()}
	for _, pl := range p.plugins {
		found, _ := plugins.Find(pl.typ)
		n.Plugins = append(n.Plugins, NetworkPlugin{Type: pl.typ, Path: found.Path, IPAM: pl.ipam, Delegates: pl.delegates, Capabilities: pl.capabilities})
		n.addAbout(plugins, append([]string{pl.typ, pl.ipam}, pl.delegates...))
	}
	var err error
	if n.ConfList, err = p.confList(cniVersion, opts.MTU); err != nil {
		return nil, "cannot be written as a list: " + err.Error()
	}
	// The list is journalled with each pod: DEL must be able to read it.
	if _, err := libcni.NetworkConfFromBytes(n.ConfList); err != nil {
		return nil, "libcni does not take it: " + err.Error()
	}
	return n, ""
}

// addAbout notes what the binaries of plugin types say of themselves.
func (n *Network) addAbout(plugins *probe.Plugins, types []string) {
	for _, typ := range types {
		if found, ok := plugins.Find(typ); ok && found.About != "" {
			if n.About == nil {
				n.About = make(map[string]string)
			}
			n.About[typ] = found.About
		}
	}
}

// choose returns the best version that the file asks for and every plugin
// reports, or what keeps the network from the best that the file asks for.
func (p *parsed) choose(plugins *probe.Plugins) (cniVersion string, reasons []string) {
	for _, v := range p.versions {
		missing := p.missing(plugins, v)
		if len(missing) == 0 {
			return v, nil
		}
		if reasons == nil {
			reasons = missing
		}
	}
	return "", reasons
}

// missing says what keeps the network from being called with cniVersion. An IPAM
// type without an executable is part of it for the reference plugins alone: see
// warnings.
func (p *parsed) missing(plugins *probe.Plugins, cniVersion string) []string {
	var reasons []string
	check := func(role string, found probe.Plugin) {
		switch {
		case !found.Usable():
			reasons = append(reasons, fmt.Sprintf("%s %s %s", role, found.Path, found.Reason))
		case !found.Supports(cniVersion):
			reasons = append(reasons, fmt.Sprintf("asks for CNI version %s; %s %s reports %s", cniVersion, role, found.Path, strings.Join(found.Versions, ", ")))
		}
	}
	for _, pl := range p.plugins {
		if found, ok := plugins.Find(pl.typ); ok {
			check("plugin", found)
		} else {
			reasons = append(reasons, fmt.Sprintf("plugin %s is not in %s", pl.typ, dirPaths(plugins)))
		}
		switch found, ok := plugins.Find(pl.ipam); {
		case ok && !found.NotExecutable:
			check("IPAM plugin", found)
		case pl.ipam != "" && execsIPAM(pl.typ):
			reasons = append(reasons, fmt.Sprintf("IPAM plugin %s is no executable in %s", pl.ipam, dirPaths(plugins)))
		}
		for _, typ := range pl.needed() {
			if lacks(plugins, typ) {
				reasons = append(reasons, fmt.Sprintf("plugin %s, to which %s delegates, is no executable in %s", typ, pl.typ, dirPaths(plugins)))
			}
		}
	}
	slices.Sort(reasons)
	return slices.Compact(reasons)
}

// lacks says whether there is no executable of a type in the bin dirs.
func lacks(plugins *probe.Plugins, typ string) bool {
	found, ok := plugins.Find(typ)
	return !ok || found.NotExecutable
}

// absent lists the binaries that the network lacks, and where they are looked for;
// empty if none is missing.
func (p *parsed) absent(plugins *probe.Plugins) string {
	var all []string
	need := func(role, typ string) {
		if lacks(plugins, typ) {
			all = append(all, role+" "+typ)
		}
	}
	for _, pl := range p.plugins {
		need("plugin", pl.typ)
		if pl.ipam != "" && execsIPAM(pl.typ) {
			need("IPAM plugin", pl.ipam)
		}
		for _, typ := range pl.needed() {
			need("plugin", typ)
		}
	}
	if len(all) == 0 {
		return ""
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ") + " in " + dirPaths(plugins)
}

// needed are the types that the plugin delegates to and that must be in the bin dirs:
// those of flannel, which looks there. Others, such as Multus, may have directories of
// their own.
func (pl *parsedPlugin) needed() []string {
	const parts = 4 // what delegation finds in one delegate, and what parse adds
	if pl.typ != "flannel" || len(pl.delegates) != parts {
		return nil
	}
	return []string{cmp.Or(pl.delegates[0], pl.delegates[2]), cmp.Or(pl.delegates[1], pl.delegates[3])}
}

// execsIPAM reports whether a type is one of the reference plugins that execute
// their ipam.type. Others may have names of their own for it.
func execsIPAM(typ string) bool {
	switch typ {
	case "bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap":
		return true
	default:
		return false
	}
}

// warnings says what may make a usable network's pods fail. Some plugins have
// names of their own for ipam.type (azure-vnet has azure-cns), so that one
// without an executable is no fault for sure.
func (p *parsed) warnings(plugins *probe.Plugins) (warnings []string) {
	for _, pl := range p.plugins {
		if pl.ipam != "" && !execsIPAM(pl.typ) && lacks(plugins, pl.ipam) {
			warnings = append(warnings, fmt.Sprintf("IPAM plugin %s is no executable in %s: pods fail unless plugin %s knows that type itself", pl.ipam, dirPaths(plugins), pl.typ))
		}
		if found, _ := plugins.Find(pl.typ); found.Doubt != "" {
			warnings = append(warnings, fmt.Sprintf("plugin %s: %s", found.Path, found.Doubt))
		}
		if found, _ := plugins.Find(pl.ipam); found.Doubt != "" {
			warnings = append(warnings, fmt.Sprintf("IPAM plugin %s: %s", found.Path, found.Doubt))
		}
	}
	slices.Sort(warnings)
	return slices.Compact(warnings)
}

// dirPaths lists the bin dirs.
func dirPaths(plugins *probe.Plugins) string {
	var paths []string
	for _, d := range plugins.Dirs() {
		paths = append(paths, d.Path)
	}
	return strings.Join(paths, ", ")
}

// confList returns the network as a list with every plugin inlined. Values keep
// their bytes, except for white space.
func (p *parsed) confList(cniVersion string, mtu int) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"cniVersion":%q,"name":%q,"loadOnlyInlinedPlugins":true`, cniVersion, p.name)
	for _, m := range p.head {
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, fmt.Errorf("key %.40q: %w", m.key, err)
		}
		b.WriteByte(',')
		b.Write(key)
		b.WriteByte(':')
		if err := json.Compact(&b, m.raw); err != nil {
			return nil, fmt.Errorf("value of %s: %w", m.key, err)
		}
	}
	b.WriteString(`,"plugins":[`)
	for i, pl := range p.plugins {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(withMTU(pl.raw, mtu))
	}
	b.WriteString("]}")
	return b.Bytes(), nil
}

// withMTU adds an mtu to a plugin's compact object, if it has none.
func withMTU(raw json.RawMessage, mtu int) json.RawMessage {
	if mtu == 0 {
		return raw
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) != nil {
		return raw
	}
	for key := range object {
		if strings.EqualFold(key, "mtu") { // encoding/json matches keys in any case
			return raw
		}
	}
	return append([]byte(`{"mtu":`+strconv.Itoa(mtu)+`,`), raw[1:]...) // not empty: it has a type
}
