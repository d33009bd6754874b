package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/crinet-project/crinet/internal/dirs"
	"github.com/crinet-project/crinet/probe"
)

// Candidate is a configuration file that is not in the conf dir yet, with the plugins
// in the network's folder beside it. It can be handed to another process.
type Candidate struct {
	// Path is where the file was read, for messages.
	Path string `json:"path"`
	Data []byte `json:"data"`
	// Folder holds the files of the network's folder by name; nil if there is none.
	Folder map[string][]byte `json:"folder,omitempty"`
}

// ReadCandidate reads a configuration file as a scan of its directory would.
func ReadCandidate(path string) (*Candidate, *Problem) {
	broken := func(path, reason string) *Problem {
		return &Problem{Kind: ProblemBroken, File: path, Reason: reason}
	}
	name := filepath.Base(path)
	if !slices.Contains(confSuffixes(), filepath.Ext(name)) || name[0] == '.' {
		return nil, broken(path, "is not read: a configuration's name ends in .conf, .conflist or .json, and does not begin with a dot")
	}
	c := &Candidate{Path: path}
	var err error
	if c.Data, err = dirs.ReadFile(path, maxFile); err != nil {
		return nil, broken(path, errno(err))
	}
	var named struct {
		Name string `json:"name"`
	}
	// parse reports what is wrong with the file.
	if json.Unmarshal(c.Data, &named) != nil || !filepath.IsLocal(named.Name) || named.Name == "." {
		return c, nil
	}
	budget := maxTotal - len(c.Data)
	folder, _ := readDir(filepath.Join(filepath.Dir(path), named.Name), folderSuffixes(), &budget)
	switch {
	case errors.Is(folder.Err, os.ErrNotExist):
		return c, nil
	case folder.Err != nil:
		return nil, broken(folder.Path, "cannot be read: "+errno(folder.Err))
	}
	c.Folder = make(map[string][]byte)
	for _, f := range folder.Files {
		if f.Err != nil {
			return nil, broken(filepath.Join(folder.Path, f.Name), errno(f.Err))
		}
		c.Folder[f.Name] = f.Data
	}
	return c, nil
}

// parse parses the candidate.
func (c *Candidate) parse() (*parsed, *Problem) {
	dir := &Dir{Path: filepath.Dir(c.Path), Folders: map[string]*Dir{}}
	if c.Folder != nil {
		var named struct {
			Name string `json:"name"`
		}
		_ = json.Unmarshal(c.Data, &named) // parse reports what is wrong with the file
		folder := &Dir{Path: filepath.Join(dir.Path, filepath.Base(named.Name))}
		for _, name := range slices.Sorted(maps.Keys(c.Folder)) {
			folder.Files = append(folder.Files, File{Name: filepath.Base(name), Data: c.Folder[name]})
		}
		dir.Folders[named.Name] = folder
	}
	p, bad := parse(dir, File{Name: filepath.Base(c.Path), Data: c.Data})
	switch {
	case bad != nil:
		return nil, &Problem{Kind: ProblemBroken, File: bad.path, Line: bad.line, Col: bad.col, Reason: bad.reason}
	case p.loop != "":
		return nil, &Problem{Kind: ProblemOwn, File: c.Path, Network: p.name, Reason: p.loop}
	}
	return p, nil
}

// Network is the network that the candidate would be in the conf dir, with warnings
// of what may make its pods fail. look looks at the plugins of these types in the bin
// dirs.
func (c *Candidate) Network(look func(types []string) (*probe.Plugins, error), opts ScanOptions) (*Network, []string, *Problem) {
	p, problem := c.parse()
	if problem != nil {
		return nil, nil, problem
	}
	plugins, err := look(p.types())
	if err != nil {
		return nil, nil, &Problem{Kind: ProblemBroken, File: c.Path, Network: p.name, Reason: fmt.Sprintf("its plugins cannot be looked at: %v", err)}
	}
	n, reason := p.network(plugins, opts)
	if reason != "" {
		return nil, nil, &Problem{Kind: ProblemUnusable, File: c.Path, Network: p.name, Reason: reason}
	}
	n.File = c.Path
	return n, p.warnings(plugins), nil
}
