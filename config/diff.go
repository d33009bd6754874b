package config

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"

	"github.com/crinet-project/crinet/probe"
)

// maxWhy is the maximum length of Snapshot.Why in bytes.
const maxWhy = 400

// why describes what differs between two snapshots, in at most maxWhy bytes.
func why(prev, next *Snapshot) string {
	var what []string
	if next.DirReason != prev.DirReason {
		if next.DirReason == "" {
			what = append(what, next.Dir+" can be read")
		} else {
			what = append(what, next.Dir+" "+next.DirReason)
		}
	}
	what = append(what, whyNetworks(prev.Networks, next.Networks)...)
	for _, p := range newProblems(prev, next) {
		what = append(what, p.String())
	}
	what = append(what, whyPlugins(prev.Plugins, next.Plugins)...)
	if len(what) == 0 {
		if len(newProblems(next, prev)) > 0 {
			return "files that could not be used are gone or in order"
		}
		return "bin dirs changed"
	}
	return clip(strings.Join(what, "; "), maxWhy)
}

func whyNetworks(prev, next []*Network) (what []string) {
	old := map[string]*Network{}
	for _, n := range prev {
		old[n.Name] = n
	}
	for _, n := range next {
		o, had := old[n.Name]
		delete(old, n.Name)
		switch {
		case !had:
			what = append(what, fmt.Sprintf("network %s is usable", n.Name))
		case n.Stale != "" && o.Stale == "":
			what = append(what, fmt.Sprintf("network %s keeps its last good version", n.Name))
		case n.File != o.File:
			what = append(what, fmt.Sprintf("network %s is in %s now", n.Name, n.File))
		case !bytes.Equal(n.ConfList, o.ConfList):
			what = append(what, fmt.Sprintf("network %s changed", n.Name))
		case n.Stale == "" && o.Stale != "":
			what = append(what, fmt.Sprintf("network %s is in order again", n.Name))
		}
	}
	for _, n := range prev {
		if old[n.Name] != nil {
			what = append(what, fmt.Sprintf("network %s is not usable any more", n.Name))
		}
	}
	return what
}

func whyPlugins(prev, next *probe.Plugins) (what []string) {
	old := map[string]probe.Plugin{}
	for _, p := range prev.All() {
		old[p.Name] = p
	}
	for _, p := range next.All() {
		if o, had := old[p.Name]; !had {
			what = append(what, fmt.Sprintf("plugin %s came", p.Name))
		} else if o.Asked == p.Asked && !reflect.DeepEqual(o, p) { // else the configuration changed
			what = append(what, fmt.Sprintf("plugin %s changed", p.Name))
		}
		delete(old, p.Name)
	}
	for _, p := range prev.All() {
		if _, gone := old[p.Name]; gone {
			what = append(what, fmt.Sprintf("plugin %s is gone", p.Name))
		}
	}
	return what
}

// newProblems returns the problems of next that prev does not have.
func newProblems(prev, next *Snapshot) (fresh []Problem) {
	had := map[Problem]bool{}
	for _, p := range prev.Problems {
		had[p] = true
	}
	for _, p := range next.Problems {
		if !had[p] {
			fresh = append(fresh, p)
		}
	}
	return fresh
}
