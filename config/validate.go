package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/internal/dirs"
	"github.com/crinet-project/crinet/probe"
)

// Valid is what a valid configuration file says. Whether its plugins exist is not
// known.
type Valid struct {
	Network      string
	CNIVersions  []string // that it can be used with, best first
	Plugins      []string // types, in the order of ADD
	Capabilities []string // that its plugins declare, sorted
	NeedsPodCIDR bool     // see Network.NeedsPodCIDR
	// Warnings say what may make its pods fail, if the plugins were looked at.
	Warnings []string
}

// ValidateFile reads one configuration file as a scan of its directory would,
// with the plugins in the network's folder beside it. It needs no daemon. look
// looks at the plugins of these types in the bin dirs; nil leaves them aside.
func ValidateFile(path string, look func(types []string) (*probe.Plugins, error)) (*Valid, *Problem) {
	dir := &Dir{Path: filepath.Dir(path), Folders: map[string]*Dir{}}
	f := File{Name: filepath.Base(path)}
	broken := func(format string, args ...any) (*Valid, *Problem) {
		return nil, &Problem{Kind: ProblemBroken, File: path, Reason: fmt.Sprintf(format, args...)}
	}
	if !slices.Contains(confSuffixes(), filepath.Ext(f.Name)) || f.Name[0] == '.' {
		return broken("is not read: a configuration's name ends in .conf, .conflist or .json, and does not begin with a dot")
	}
	var err error
	if f.Data, err = dirs.ReadFile(path, maxFile); err != nil {
		return broken("%s", errno(err))
	}
	var named struct {
		Name string `json:"name"`
	}
	// parse reports what is wrong with the file.
	if json.Unmarshal(f.Data, &named) == nil && filepath.IsLocal(named.Name) && named.Name != "." {
		budget := maxTotal - len(f.Data)
		folder, _ := readDir(filepath.Join(dir.Path, named.Name), folderSuffixes(), &budget)
		if !errors.Is(folder.Err, os.ErrNotExist) {
			dir.Folders[named.Name] = folder
		}
	}
	p, bad := parse(dir, f)
	if bad != nil {
		return nil, &Problem{Kind: ProblemBroken, File: bad.path, Line: bad.line, Col: bad.col, Reason: bad.reason}
	}
	valid := &Valid{Network: p.name, CNIVersions: p.versions, Capabilities: p.capabilities(), NeedsPodCIDR: p.needsPodCIDR()}
	for _, pl := range p.plugins {
		valid.Plugins = append(valid.Plugins, pl.typ)
	}
	if p.loop != "" {
		return nil, &Problem{Kind: ProblemOwn, File: path, Network: p.name, Reason: p.loop}
	}
	if look == nil {
		return valid, nil
	}
	plugins, err := look(p.types())
	if err != nil {
		return broken("its plugins cannot be looked at: %v", err)
	}
	if _, reason := p.network(plugins, ScanOptions{}); reason != "" {
		return nil, &Problem{Kind: ProblemUnusable, File: path, Network: p.name, Reason: reason}
	}
	valid.Warnings = p.warnings(plugins)
	return valid, nil
}
