package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/crinet-project/crinet/probe"
)

// Network is a usable network. It is immutable and complete: DEL can use it when
// conf dir and Snapshot are long gone.
type Network struct {
	// Name is the network's name, unique in a Snapshot.
	Name string
	// File is the path of the file that it is from.
	File string
	// CNIVersion is the version that the plugins are called with: the highest
	// one that the file asks for and every plugin of it reports.
	CNIVersion string
	// Plugins is the chain in the order of ADD; at least one.
	Plugins []NetworkPlugin
	// Capabilities is the union of what the plugins declare, sorted.
	Capabilities []string
	// ConfList is the network as a CNI configuration list with every plugin
	// inlined, for libcni.NetworkConfFromBytes. It must not be written to.
	ConfList []byte
	// About says what the binaries of the chain, of its IPAM and of its delegates say
	// of themselves, by plugin type, as far as they were asked (probe.Plugin.About).
	About map[string]string
	// NeedsPodCIDR: a plugin declares the capability ipRanges, and its host-local
	// IPAM has no subnet or ranges of its own. It has no addresses before the
	// node's pod CIDR is known.
	NeedsPodCIDR bool
	// Stale says what is wrong with the file, if this is its last good version;
	// empty if this is what the file says.
	Stale string
}

// NetworkPlugin is one plugin of a Network's chain.
type NetworkPlugin struct {
	Type         string
	Path         string   // of its binary
	IPAM         string   // type of its IPAM plugin; may be empty
	Delegates    []string // types of plugins that it runs itself, as far as its configuration shows them; may have empty ones
	Capabilities []string // that its configuration declares, sorted
}

// String names the network, its file and its chain.
func (n *Network) String() string {
	types := make([]string, len(n.Plugins))
	for i, p := range n.Plugins {
		types[i] = p.Type
	}
	return fmt.Sprintf("%s (%s: %s)", n.Name, n.File, strings.Join(types, ", "))
}

// ProblemKind is what a Problem means for the network.
type ProblemKind string

// The kinds of problems.
const (
	// ProblemBroken: the file is not readable or not valid, and there is no
	// earlier version of it to use.
	ProblemBroken ProblemKind = "broken"
	// ProblemStale: the same, but the last good version is kept.
	ProblemStale ProblemKind = "stale"
	// ProblemUnusable: the file is good, but a plugin is missing, or does not
	// work, or does not speak its CNI version.
	ProblemUnusable ProblemKind = "unusable"
	// ProblemDuplicate: a file before it has a network of the same name.
	ProblemDuplicate ProblemKind = "duplicate"
	// ProblemOwn: it would make crinet call itself.
	ProblemOwn ProblemKind = "own"
	// ProblemWarning: the network is used, but may not work as it is: its IPAM
	// type is no executable, or a plugin counts by an earlier answer.
	ProblemWarning ProblemKind = "warning"
)

// Problem says what is wrong with one file of the conf dir.
type Problem struct {
	Kind      ProblemKind
	File      string // path; may be a file in the network's folder
	Line, Col int    // from 1, in bytes; 0 if the file as a whole is meant
	Network   string // its name, if known
	Reason    string
}

// String is file:line:col: reason.
func (p Problem) String() string {
	if p.Line == 0 {
		return p.File + ": " + p.Reason
	}
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Col, p.Reason)
}

// Snapshot is the state of the conf dir and the bin dirs at one time. It is
// immutable.
type Snapshot struct {
	Dir string // the conf dir
	// DirReason says why the conf dir could not be read; empty if it could. The
	// networks of a conf dir that exists but cannot be read are kept.
	DirReason string
	Networks  []*Network // usable, in file-name order
	Problems  []Problem  // in file-name order
	Plugins   *probe.Plugins

	// Generation counts the changes since the Watcher began, from 1. Changed is
	// the time of the last one, Why says what it was. Scan leaves them empty.
	Generation uint64
	Changed    time.Time
	Why        string

	good  map[string]*parsed // by file name: what was last good
	waits map[string]string  // by path: the binaries that a file's network lacks
}

// same reports whether both say the same, generations aside.
func (s *Snapshot) same(o *Snapshot) bool {
	return s.Dir == o.Dir && s.DirReason == o.DirReason && s.Plugins.Equal(o.Plugins) &&
		reflect.DeepEqual(s.Networks, o.Networks) && reflect.DeepEqual(s.Problems, o.Problems)
}
