package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Valid is a configuration file that is good by itself: whether the plugins
// that it names are there, nobody has looked.
type Valid struct {
	Network      string
	CNIVersions  []string // that it can be used with, best first
	Plugins      []string // types, in the order of ADD
	Capabilities []string // that its plugins declare, sorted
	NeedsPodCIDR bool     // see Network.NeedsPodCIDR
}

// ValidateFile reads one configuration file as a scan of its directory would,
// with the plugins in the network's folder beside it. It needs no daemon and no
// plugins.
func ValidateFile(path string) (*Valid, *Problem) {
	dir := &Dir{Path: filepath.Dir(path), Folders: map[string]*Dir{}}
	f := File{Name: filepath.Base(path)}
	broken := func(format string, args ...any) (*Valid, *Problem) {
		return nil, &Problem{Kind: ProblemBroken, File: path, Reason: fmt.Sprintf(format, args...)}
	}
	if !slices.Contains(confSuffixes(), filepath.Ext(f.Name)) || f.Name[0] == '.' {
		return broken("is not read: a configuration's name ends in .conf, .conflist or .json, and does not begin with a dot")
	}
	info, err := os.Stat(path)
	if err != nil {
		return broken("%s", errno(err))
	}
	if f.Data, err = readFile(path, info, maxTotal); err != nil {
		return broken("%s", errno(err))
	}
	var named struct {
		Name string `json:"name"`
	}
	// What is wrong with the file is found by parse.
	if json.Unmarshal(f.Data, &named) == nil && filepath.IsLocal(named.Name) && named.Name != "." {
		budget := maxTotal - len(f.Data)
		folder, _ := readDir(filepath.Join(dir.Path, named.Name), []string{".conf"}, &budget)
		if !errors.Is(folder.Err, os.ErrNotExist) {
			dir.Folders[named.Name] = folder
		}
	}
	p, bad := parse(dir, f)
	if bad != nil {
		return nil, &Problem{Kind: ProblemBroken, File: bad.path, Line: bad.line, Col: bad.col, Reason: bad.reason}
	}
	valid := &Valid{Network: p.name, CNIVersions: p.versions}
	for _, pl := range p.plugins {
		valid.Plugins = append(valid.Plugins, pl.typ)
		valid.Capabilities = append(valid.Capabilities, pl.capabilities...)
		valid.NeedsPodCIDR = valid.NeedsPodCIDR || pl.needsPodCIDR
	}
	slices.Sort(valid.Capabilities)
	valid.Capabilities = slices.Compact(valid.Capabilities)
	return valid, nil
}
