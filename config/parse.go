package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crinet-project/crinet/internal/dirs"
	"github.com/crinet-project/crinet/probe"
)

// maxPlugins is how many plugins a network may have.
const maxPlugins = 64

// fileError says what is wrong with a file. line and col count from 1, in bytes;
// line is 0 if the file as a whole is meant.
type fileError struct {
	path      string
	line, col int
	reason    string
}

// parsed is a configuration that is valid; whether its plugins exist is not
// known. It is immutable.
type parsed struct {
	name     string
	versions []string // CNI versions to choose from, best first
	head     []member // other members of the list, passed on unchanged
	plugins  []parsedPlugin
	loop     string // why crinet would call itself with it; empty if it would not
	source   source // the file that it was parsed from
	folder   *Dir   // the network's folder, if its plugins are part of it
}

// parsedPlugin is one plugin object of a list.
type parsedPlugin struct {
	typ, ipam    string
	delegates    []string        // types of the plugins that it runs itself, see delegation
	capabilities []string        // declared ones, sorted
	needsPodCIDR bool            // see Network.NeedsPodCIDR
	raw          json.RawMessage // compact
}

// capabilities returns the union of what the plugins declare, sorted.
func (p *parsed) capabilities() (all []string) {
	for _, pl := range p.plugins {
		all = append(all, pl.capabilities...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// needsPodCIDR is Network.NeedsPodCIDR.
func (p *parsed) needsPodCIDR() bool {
	return slices.ContainsFunc(p.plugins, func(pl parsedPlugin) bool { return pl.needsPodCIDR })
}

// source is a file while it is parsed.
type source struct {
	path string
	data []byte
}

// parse reads a configuration file and, unless it says loadOnlyInlinedPlugins,
// the plugins in the network's folder, as libcni's NetworkConfFromFile does.
func parse(dir *Dir, f File) (*parsed, *fileError) {
	src := source{path: filepath.Join(dir.Path, f.Name), data: f.Data}
	p, err := src.parse(dir, f)
	if err != nil {
		return nil, err
	}
	p.source = src
	for i := range p.plugins {
		pl := &p.plugins[i]
		types, back := delegation(pl.raw)
		if pl.typ == "flannel" { // what it delegates to if nothing else is said
			types = append(types, "bridge", hostLocal)
		}
		pl.delegates = types
		switch {
		case pl.typ == probe.ShimType:
			p.loop = "is crinet's own shim"
		case back != "":
			p.loop = fmt.Sprintf("leads back to crinet: plugin %s delegates to %s, which would call %s again for every pod; give it another network", pl.typ, back, pl.typ)
		}
	}
	return p, nil
}

func (s source) parse(dir *Dir, f File) (*parsed, *fileError) {
	ms, err := s.open(f)
	if err != nil {
		return nil, err
	}
	_, isList := find(ms, "plugins")
	_, isPlugin := find(ms, "type")
	switch ext := filepath.Ext(f.Name); {
	case ext == ".conf" && isList && !isPlugin:
		return nil, s.errorf(0, "is a list of plugins; a .conf file holds a single one, a list is named .conflist")
	case ext == ".conf" || (ext == ".json" && isPlugin && !isList):
		return s.single(ms)
	}
	p, inlinedOnly, err := s.list(ms)
	if err != nil {
		return nil, err
	}
	if folder := dir.Folders[p.name]; folder != nil && !inlinedOnly {
		if err := p.addFolder(folder); err != nil {
			return nil, err
		}
		p.folder = folder
	}
	if len(p.plugins) == 0 {
		return nil, s.errorf(0, "has no plugins")
	}
	return p, nil
}

// open returns the members of the file's object.
func (s source) open(f File) ([]member, *fileError) {
	switch {
	case f.Err != nil && errors.Is(f.Err, fs.ErrNotExist):
		return nil, s.errorf(-1, "is a symlink to nothing")
	case f.Err != nil:
		return nil, s.errorf(-1, "%s", errno(f.Err))
	case len(bytes.TrimSpace(f.Data)) == 0:
		return nil, s.errorf(-1, "is empty")
	}
	ms, at, err := members(s.data)
	if err != nil {
		return nil, s.errorf(at, "is broken: %v", err)
	}
	return ms, nil
}

// single makes a list of a plugin's configuration, as libcni's ConfListFromConf.
func (s source) single(ms []member) (*parsed, *fileError) {
	pl, conf, err := s.plugin(s.data, 0)
	if err != nil {
		return nil, err
	}
	p := &parsed{name: conf.Network.Name, plugins: []parsedPlugin{pl}}
	at := 0
	if m, ok := find(ms, "name"); ok {
		at = m.at
	}
	if err := s.checkName(p.name, at); err != nil {
		return nil, err
	}
	if p.versions, err = s.versions(conf.Network.CNIVersion, nil, ms); err != nil {
		return nil, err
	}
	return p, nil
}

// list reads a configuration list (CNI specification, section 1), without the
// plugins in the network's folder.
func (s source) list(ms []member) (p *parsed, inlinedOnly bool, err *fileError) {
	p = &parsed{}
	var one string
	var several []string
	var raws []json.RawMessage
	for _, m := range ms {
		var target any
		switch m.key {
		case "name":
			target = &p.name
		case "cniVersion":
			target = &one
		case "cniVersions":
			target = &several
		case "plugins":
			target = &raws
		case "loadOnlyInlinedPlugins", "disableCheck", "disableGC":
			yes, ok := asBool(m.raw)
			if !ok {
				return nil, false, s.errorf(m.at, "%s is %.40s; want true or false", m.key, m.raw)
			}
			if m.key == "loadOnlyInlinedPlugins" {
				inlinedOnly = yes
				continue
			}
		}
		if target == nil {
			p.head = append(p.head, m)
			target = new(any) // libcni decodes it too
		}
		if uerr := json.Unmarshal(m.raw, target); uerr != nil {
			return nil, false, s.errorf(m.at, "%s: %s", m.key, wrongType(uerr))
		}
	}
	nameAt, _ := find(ms, "name")
	if err := s.checkName(p.name, nameAt.at); err != nil {
		return nil, false, err
	}
	if p.versions, err = s.versions(one, several, ms); err != nil {
		return nil, false, err
	}
	if len(raws) > maxPlugins {
		return nil, false, s.errorf(0, "has %d plugins; want at most %d", len(raws), maxPlugins)
	}
	pluginsAt, _ := find(ms, "plugins")
	at := pluginsAt.at
	for _, raw := range raws {
		// raw is a copy of the file's bytes: find it for its offset.
		at += max(bytes.Index(s.data[at:], raw), 0)
		pl, _, err := s.plugin(raw, at)
		if err != nil {
			return nil, false, err
		}
		p.plugins = append(p.plugins, pl)
		at += len(raw)
	}
	return p, inlinedOnly, nil
}

// addFolder appends the plugins of the network's folder, in file-name order.
func (p *parsed) addFolder(folder *Dir) *fileError {
	if folder.Err != nil {
		return &fileError{path: folder.Path, reason: "cannot be read: " + errno(folder.Err)}
	}
	for _, f := range folder.Files {
		s := source{path: filepath.Join(folder.Path, f.Name), data: f.Data}
		if _, err := s.open(f); err != nil {
			return err
		}
		pl, _, err := s.plugin(f.Data, 0)
		if err != nil {
			return err
		}
		if len(p.plugins) == maxPlugins {
			return s.errorf(-1, "is one plugin more than the %d a network may have", maxPlugins)
		}
		p.plugins = append(p.plugins, pl)
	}
	return nil
}

// plugin reads one plugin's configuration, which begins at offset at. Like libcni
// it decodes the object, encodes it and decodes that: both then agree on objects
// whose keys differ only in case.
func (s source) plugin(raw []byte, at int) (parsedPlugin, *libcni.PluginConfig, *fileError) {
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return parsedPlugin{}, nil, s.errorf(at, "plugin: %s", wrongType(err))
	}
	canonical, err := json.Marshal(object)
	if err != nil {
		return parsedPlugin{}, nil, s.errorf(at, "plugin: %v", err)
	}
	conf, err := libcni.NetworkPluginConfFromBytes(canonical)
	var typeErr *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typeErr):
		return parsedPlugin{}, nil, s.errorf(at, "plugin: %s", wrongType(err))
	case err != nil:
		return parsedPlugin{}, nil, s.errorf(at, "a plugin has no type")
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return parsedPlugin{}, nil, s.errorf(at, "plugin: %v", err)
	}
	pl := parsedPlugin{typ: conf.Network.Type, ipam: conf.Network.IPAM.Type, raw: compact.Bytes()}
	for name, declared := range conf.Network.Capabilities {
		if declared {
			pl.capabilities = append(pl.capabilities, name)
		}
	}
	slices.Sort(pl.capabilities)
	pl.needsPodCIDR = pl.ipam == hostLocal && slices.Contains(pl.capabilities, "ipRanges") && !hasRanges(raw)
	for _, typ := range []string{pl.typ, pl.ipam} {
		if typ != "" && !isFileName(typ) {
			return parsedPlugin{}, nil, s.errorf(at, "plugin type %.80q is no file name", typ)
		}
	}
	return pl, conf, nil
}

// hostLocal is the type of the IPAM plugin that takes ranges from its
// configuration and from the capability ipRanges.
const hostLocal = "host-local"

// hasRanges reports whether a plugin's configuration has addresses for
// host-local: a subnet, or lists of ranges.
func hasRanges(raw json.RawMessage) bool {
	var conf struct {
		IPAM struct {
			Subnet string            `json:"subnet"`
			Ranges []json.RawMessage `json:"ranges"`
		} `json:"ipam"`
	}
	// host-local itself refuses what has another form.
	return json.Unmarshal(raw, &conf) != nil || conf.IPAM.Subnet != "" || len(conf.IPAM.Ranges) > 0
}

func (s source) checkName(name string, at int) *fileError {
	switch {
	case name == "":
		return s.errorf(at, "has no network name")
	case utils.ValidateNetworkName(name) != nil:
		return s.errorf(at, "network name %.80q has other characters than letters, digits, '_', '.' and '-', or begins with one of the latter", name)
	}
	return nil
}

// versions returns the known CNI versions among those that the file asks for,
// best first. No version at all is 0.1.0; unknown ones in cniVersions are left
// out, as the specification says (section "Version considerations").
func (s source) versions(one string, several []string, ms []member) ([]string, *fileError) {
	if one == "" && len(several) == 0 {
		return []string{"0.1.0"}, nil
	}
	asked := several
	if one != "" {
		asked = append(slices.Clone(several), one)
	}
	known := version.All.SupportedVersions() // in ascending order
	var found []string
	for _, v := range slices.Backward(known) {
		if slices.Contains(asked, v) {
			found = append(found, v)
		}
	}
	if len(found) == 0 {
		m, ok := find(ms, "cniVersion")
		if !ok {
			m, _ = find(ms, "cniVersions")
		}
		return nil, s.errorf(m.at, "asks for CNI version %.80q; known are %s", strings.Join(asked, ", "), strings.Join(known, ", "))
	}
	return found, nil
}

// errorf returns an error at an offset of the file, or, for -1, about the file as
// a whole.
func (s source) errorf(at int, format string, args ...any) *fileError {
	e := &fileError{path: s.path, reason: fmt.Sprintf(format, args...)}
	if at >= 0 {
		before := s.data[:min(at, len(s.data))]
		e.line = 1 + bytes.Count(before, []byte("\n"))
		e.col = len(before) - bytes.LastIndexByte(before, '\n')
	}
	return e
}

// errno returns the text of an error for a message that has the file's path.
func errno(err error) string { return dirs.Cause(err).Error() }
