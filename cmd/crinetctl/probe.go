package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/runtime/admin"
)

// newProbe makes the command probe.
func newProbe(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "probe",
		Short: "Show the plugins in the bin dirs: CNI versions, what they shadow, why some cannot be used",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := o.client().Plugins(c.Context())
			if err != nil {
				return err
			}
			return o.print(p, func() error { return printPlugins(o.stdout, p) })
		},
	}
}

func printPlugins(stdout io.Writer, p admin.Plugins) error {
	w := newTable(stdout)
	if len(p.Dirs) == 0 {
		w.row("No plugins are probed: --network-plugin is noop.")
		return w.Flush()
	}
	w.row("BIN DIR", "NOTE")
	for _, dir := range p.Dirs {
		w.row(dir.Path, dir.Reason)
	}
	w.gap()
	w.row("PLUGIN", "PATH", "CNI VERSIONS", "NOTE")
	for _, plugin := range p.Plugins {
		var notes []string
		if plugin.Reason != "" {
			notes = append(notes, plugin.Reason)
		}
		if len(plugin.Shadowed) > 0 {
			notes = append(notes, "shadows "+strings.Join(plugin.Shadowed, ", "))
		}
		w.row(plugin.Name, plugin.Path, orNone(strings.Join(plugin.Versions, ",")), strings.Join(notes, "; "))
	}
	return w.Flush()
}
