package config

import (
	"context"
	"fmt"

	"github.com/crinet-project/crinet/probe"
)

// maxLogged is how many problems are logged at one change.
const maxLogged = 20

// logChange logs what is new in next.
func (w *Watcher) logChange(ctx context.Context, prev, next *Snapshot) {
	if prev == nil {
		prev = &Snapshot{}
	}
	networks := make([]string, len(next.Networks))
	for i, n := range next.Networks {
		networks[i] = n.String()
	}
	w.cfg.Log.InfoContext(ctx, "CNI network configurations read", "dir", next.Dir, "generation", next.Generation,
		"why", next.Why, "networks", networks, "problems", len(next.Problems))
	if next.DirReason != prev.DirReason && next.DirReason != "" {
		w.cfg.Log.WarnContext(ctx, "CNI conf dir cannot be read", "dir", next.Dir, "reason", next.DirReason)
	}
	for i, p := range newProblems(prev, next) {
		if i == maxLogged {
			w.cfg.Log.WarnContext(ctx, "more CNI network configurations cannot be used; crinetctl status lists them all", "dir", next.Dir)
			break
		}
		w.cfg.Log.WarnContext(ctx, "CNI network configuration cannot be used as it is", "file", p.File, "network", p.Network,
			"kind", string(p.Kind), "reason", p.String())
	}
	w.logPlugins(ctx, prev.Plugins, next.Plugins)
}

// logPlugins logs bin dirs that cannot be read and named files that are no
// usable plugins.
func (w *Watcher) logPlugins(ctx context.Context, prev, next *probe.Plugins) {
	known := map[string]bool{}
	for _, d := range prev.Dirs() {
		known[fmt.Sprint(d)] = true
	}
	for _, d := range next.Dirs() {
		if d.Reason != "" && !known[fmt.Sprint(d)] {
			w.cfg.Log.WarnContext(ctx, "CNI bin dir cannot be searched", "dir", d.Path, "reason", d.Reason)
		}
	}
	for _, p := range prev.All() {
		known[p.Path+"\n"+p.Reason] = true
	}
	logged := 0
	for _, p := range next.All() {
		if p.Usable() || !p.Asked || known[p.Path+"\n"+p.Reason] || logged == maxLogged {
			continue
		}
		logged++
		w.cfg.Log.WarnContext(ctx, "file in a CNI bin dir is no usable plugin", "plugin", p.Path, "reason", p.Reason)
	}
}
