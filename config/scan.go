package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

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
	s := &Snapshot{Dir: dir.Path, Plugins: plugins, good: map[string]*parsed{}}
	last := map[string]*parsed{}
	if prev != nil {
		last = prev.good
	}
	switch {
	case errors.Is(dir.Err, fs.ErrNotExist):
		s.DirReason = "does not exist"
	case errors.Is(dir.Err, syscall.ENOTDIR):
		s.DirReason = "is no directory"
	case dir.Err != nil:
		s.DirReason = "cannot be read: " + errno(dir.Err)
		for _, name := range slices.Sorted(maps.Keys(last)) {
			s.add(dir, File{Name: name, Err: errors.New("the directory " + s.DirReason)}, last[name], opts)
		}
	}
	for _, f := range dir.Files {
		s.add(dir, f, last[f.Name], opts)
	}
	return s
}

// add adds one file; last is its last good version, or nil.
func (s *Snapshot) add(dir *Dir, f File, last *parsed, opts ScanOptions) {
	path := filepath.Join(dir.Path, f.Name)
	p, bad := parse(dir, f)
	stale := ""
	if bad != nil {
		problem := Problem{Kind: ProblemBroken, File: bad.path, Line: bad.line, Col: bad.col, Reason: bad.reason}
		if last == nil || errors.Is(f.Err, fs.ErrNotExist) {
			s.Problems = append(s.Problems, problem)
			return
		}
		stale = problem.String()
		problem.Kind, problem.Network = ProblemStale, last.name
		problem.Reason += "; its last good version is used"
		s.Problems = append(s.Problems, problem)
		p = last
	}
	s.good[f.Name] = p
	reject := func(kind ProblemKind, reason string) {
		s.Problems = append(s.Problems, Problem{Kind: kind, File: path, Network: p.name, Reason: reason})
	}
	if slices.ContainsFunc(p.plugins, func(pl parsedPlugin) bool { return pl.typ == probe.ShimType }) {
		reject(ProblemOwn, "is crinet's own shim")
		return
	}
	n, reason := p.network(s.Plugins, opts)
	if reason != "" {
		reject(ProblemUnusable, reason)
		return
	}
	for _, other := range s.Networks {
		if other.Name == n.Name {
			reject(ProblemDuplicate, fmt.Sprintf("has the network name %s, as %s before it", n.Name, filepath.Base(other.File)))
			return
		}
	}
	n.File, n.Stale = path, stale
	s.Networks = append(s.Networks, n)
}

// network makes a usable network of a configuration, or says why it cannot.
func (p *parsed) network(plugins *probe.Plugins, opts ScanOptions) (n *Network, reason string) {
	cniVersion, reasons := p.choose(plugins)
	if len(reasons) > 0 {
		return nil, strings.Join(reasons, "; ")
	}
	n = &Network{Name: p.name, CNIVersion: cniVersion}
	for _, pl := range p.plugins {
		found, _ := plugins.Find(pl.typ)
		n.Plugins = append(n.Plugins, NetworkPlugin{Type: pl.typ, Path: found.Path, IPAM: pl.ipam, Capabilities: pl.capabilities})
		n.Capabilities = append(n.Capabilities, pl.capabilities...)
		n.NeedsPodCIDR = n.NeedsPodCIDR || pl.needsPodCIDR
	}
	slices.Sort(n.Capabilities)
	n.Capabilities = slices.Compact(n.Capabilities)
	var err error
	if n.ConfList, err = p.confList(cniVersion, opts.MTU); err != nil {
		return nil, "cannot be written as a list: " + err.Error()
	}
	// Whatever is journalled must be readable for the DEL.
	if _, err := libcni.NetworkConfFromBytes(n.ConfList); err != nil {
		return nil, "libcni does not take it: " + err.Error()
	}
	return n, ""
}

// choose returns the best of the versions asked for that every plugin reports,
// or why the best one cannot be had.
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

// missing says what keeps the network from being called with cniVersion.
func (p *parsed) missing(plugins *probe.Plugins, cniVersion string) []string {
	var reasons []string
	check := func(role, typ string) {
		found, ok := plugins.Find(typ)
		switch {
		case !ok:
			reasons = append(reasons, fmt.Sprintf("%s %s is not in %s", role, typ, strings.Join(dirPaths(plugins), ", ")))
		case !found.Usable():
			reasons = append(reasons, fmt.Sprintf("%s %s %s", role, found.Path, found.Reason))
		case !found.Supports(cniVersion):
			reasons = append(reasons, fmt.Sprintf("asks for CNI version %s; %s %s reports %s", cniVersion, role, found.Path, strings.Join(found.Versions, ", ")))
		}
	}
	for _, pl := range p.plugins {
		check("plugin", pl.typ)
		if pl.ipam != "" {
			check("IPAM plugin", pl.ipam)
		}
	}
	slices.Sort(reasons)
	return slices.Compact(reasons)
}

func dirPaths(plugins *probe.Plugins) []string {
	var paths []string
	for _, d := range plugins.Dirs() {
		paths = append(paths, d.Path)
	}
	return paths
}

// confList writes the network as a list with everything inlined. Values are
// kept byte by byte but for white space between them.
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
		if strings.EqualFold(key, "mtu") { // Go's plugins read it in any case
			return raw
		}
	}
	return append([]byte(`{"mtu":`+strconv.Itoa(mtu)+`,`), raw[1:]...) // it has a type: it is not empty
}
