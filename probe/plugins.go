package probe

import (
	"reflect"
	"slices"
	"strings"
)

// ShimType is the plugin type of crinet's own CNI plugin. It is listed, never
// executed, and never usable as a plugin of a network.
const ShimType = "crinet"

// Plugin is one executable of the bin dirs.
type Plugin struct {
	// Name is the file's name, which is the plugin's type in configurations.
	Name string
	// Path is where the plugin is, in the first bin dir that has it.
	Path string
	// Versions are the versions of the CNI specification that it reports, in
	// its order. Empty if Reason is not.
	Versions []string
	// About is what the file says of itself, one line, if Config.About asks for it
	// and it tells; a reference plugin's says its name and version.
	About string
	// Reason says why the file cannot be used as a plugin; empty for a plugin.
	Reason string
	// Doubt says why an earlier answer is used for Versions; empty if the file's
	// own answer is.
	Doubt string
	// Asked: a configuration names the plugin. Others are never run, and have a
	// Reason that says so.
	Asked bool
	// Shadowed are the paths of executables of the same name in later bin dirs.
	Shadowed []string
	// Busy: the file is being asked, or is asked again: Reason or Doubt may pass
	// without a change of the file.
	Busy bool
	// NotExecutable: the file's mode has no execute bit. Only Find returns such
	// files.
	NotExecutable bool
}

// Usable reports whether the file answered as a CNI plugin.
func (p Plugin) Usable() bool { return p.Reason == "" }

// Supports reports whether the plugin reports version.
func (p Plugin) Supports(version string) bool { return slices.Contains(p.Versions, version) }

// Dir is the condition of a bin dir.
type Dir struct {
	Path string
	// Reason says why the directory, or a part of it, was not looked at; empty
	// if all is well.
	Reason string
}

// Plugins is what one probe found. It is immutable; the zero value and nil are
// an empty set.
type Plugins struct {
	dirs   []Dir
	all    []Plugin          // by name
	others map[string]Plugin // regular files that are not executable
}

// Find returns the file that a network's plugin type names, usable or not. A
// file that is not executable is found too, with that as its Reason.
func (s *Plugins) Find(name string) (Plugin, bool) {
	if s == nil {
		return Plugin{}, false
	}
	if i, ok := slices.BinarySearchFunc(s.all, name, byName); ok {
		return s.all[i].clone(), true
	}
	p, ok := s.others[name]
	return p, ok
}

// All returns the executables by name, the unusable ones among them.
func (s *Plugins) All() []Plugin {
	if s == nil {
		return nil
	}
	all := slices.Clone(s.all)
	for i := range all {
		all[i] = all[i].clone()
	}
	return all
}

// Dirs returns the bin dirs in the order of search.
func (s *Plugins) Dirs() []Dir {
	if s == nil {
		return nil
	}
	return slices.Clone(s.dirs)
}

// Equal reports whether both sets say the same.
func (s *Plugins) Equal(o *Plugins) bool {
	if s == nil || o == nil {
		return s == o
	}
	return reflect.DeepEqual(s, o)
}

func (p Plugin) clone() Plugin {
	p.Versions, p.Shadowed = slices.Clone(p.Versions), slices.Clone(p.Shadowed)
	return p
}

func byName(p Plugin, name string) int { return strings.Compare(p.Name, name) }
