package config

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/crinet-project/crinet/probe"
)

// maxSelectError is the maximum length of an error of Select in bytes: it becomes
// the message of a Kubernetes condition.
const maxSelectError = 1024

// maxReason is how many bytes of one reason such an error shows.
const maxReason = 200

// Select returns the network that --network-plugin names: for "cni" the first
// usable one, else the one of that name, else the first one whose first plugin
// is of that type. The error says what there is instead, in at most 1 KiB.
func (s *Snapshot) Select(networkPlugin string) (*Network, error) {
	if networkPlugin == PluginCNI && len(s.Networks) > 0 {
		return s.Networks[0], nil
	}
	for _, n := range s.Networks {
		if n.Name == networkPlugin {
			return n, nil
		}
	}
	for _, n := range s.Networks {
		if n.Plugins[0].Type == networkPlugin {
			return n, nil
		}
	}
	return nil, s.selectError(networkPlugin)
}

func (s *Snapshot) selectError(networkPlugin string) error {
	var b strings.Builder
	if networkPlugin == PluginCNI {
		fmt.Fprintf(&b, "no usable CNI network in %s", s.Dir)
	} else {
		fmt.Fprintf(&b, "no usable network in %s is named %s or begins with a plugin of that type", s.Dir, networkPlugin)
	}
	if s.DirReason != "" {
		fmt.Fprintf(&b, "; the directory %s", s.DirReason)
	} else if len(s.Networks)+len(s.Problems) == 0 {
		b.WriteString("; it holds no configuration")
	}
	// The network that was asked for comes first: there may be no room for all.
	var asked, others []string
	for _, p := range s.Problems {
		p.File = filepath.Base(p.File)
		if p.Network == networkPlugin {
			asked = append(asked, clip(p.String(), maxReason))
		} else {
			others = append(others, clip(p.String(), maxReason))
		}
	}
	var networks, plugins []string
	for _, n := range s.Networks {
		networks = append(networks, fmt.Sprintf("%s (%s)", clip(n.Name, 64), n.Plugins[0].Type))
	}
	for _, p := range s.Plugins.All() {
		if p.Usable() || (!p.Asked && p.Name != probe.ShimType) {
			plugins = append(plugins, p.Name)
		}
	}
	if len(plugins) == 0 {
		plugins = []string{"none in " + dirPaths(s.Plugins)}
	}
	writeList(&b, "files", "; ", append(asked, others...), 560)
	writeList(&b, "networks", ", ", networks, 760)
	writeList(&b, "plugins", ", ", plugins, maxSelectError-40)
	return fmt.Errorf("%s", clip(b.String(), maxSelectError))
}

// writeList appends a titled list to b. It stops before b has more than limit
// bytes, and says how many items it left out.
func writeList(b *strings.Builder, title, sep string, items []string, limit int) {
	for i, item := range items {
		before := sep
		if i == 0 {
			before = "; " + title + ": "
		}
		if b.Len()+len(before)+len(item) > limit {
			fmt.Fprintf(b, "%sand %d more", before, len(items)-i)
			return
		}
		b.WriteString(before)
		b.WriteString(item)
	}
}

// clip shortens s to at most limit bytes, between characters.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	const dots = "…"
	cut := limit - len(dots)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + dots
}
