package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/runtime/admin"
)

// newStatus makes the command status.
func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the selected network and why, whether it is ready and why not, networks, files, last reloads",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := o.client().Status(c.Context())
			if err != nil {
				return err
			}
			return o.print(s, func() error { return printStatus(o, s) })
		},
	}
}

func printStatus(o *options, s admin.Status) error {
	w := newTable(o.stdout)
	w.row("crinetd:", s.Version)
	w.row("Network plugin:", s.Plugin)
	if s.Ready {
		w.row("Network ready:", o.paint(green, "yes"))
	} else {
		w.row("Network ready:", o.paint(red, "no: "+s.Reason))
	}
	if s.Waiting != "" && s.WaitingSince != nil {
		w.row("Waiting for:", fmt.Sprintf("%s, since %s", s.Waiting, s.WaitingSince.Local().Format(time.DateTime)))
	}
	if s.Network != "" {
		w.row("Network:", fmt.Sprintf("%s (%s)", s.Network, s.NetworkFile))
		w.row("Selected as:", s.Selected)
	}
	for _, p := range s.NetworkPlugins {
		w.row("Plugin:", networkPlugin(p))
	}
	if s.NetworkStatus != "" {
		w.row("STATUS:", s.NetworkStatus)
	}
	for _, d := range s.DHCPDaemons {
		w.row("dhcp daemon:", dhcpDaemon(d))
	}
	if s.Notice != "" {
		w.row("Note:", s.Notice)
	}
	if r := s.Runtime; r != nil {
		w.row("Runtime:", runtimeLine(r))
	}
	if h := s.HostPorts; h != nil {
		w.row("hostPorts:", hostPortsLine(h))
	}
	for _, r := range s.Addresses {
		w.row("Addresses:", addressRange(r))
		for _, leak := range r.Leaks {
			w.row("Leaked:", fmt.Sprintf("%s, of container %q, which nobody knows: remove %s", leak.Address, leak.Container, leak.File))
		}
	}
	if o := s.OtherNetwork; o != nil {
		w.row("Other network:", otherNetwork(o))
	}
	if s.Drift != nil {
		w.row("Drift:", driftLine(o, s.Drift))
	}
	w.row("Pod CIDR:", orNone(strings.Join(s.PodCIDRs, ", ")))
	w.row("Undo pending:", fmt.Sprint(s.UndoPending))
	if s.AddFailures > 0 {
		w.row("Failed ADDs:", fmt.Sprintf("%d in a row", s.AddFailures))
	}
	if a := s.Adds; a.Running+a.Waiting > 0 || a.Retries > 0 {
		w.row("ADDs:", addsLine(a))
	}
	if s.Watch != nil {
		w.row("Directories:", watch(s.Watch))
	}
	printFiles(w, &s)
	return w.Flush()
}

// printFiles prints the tables of networks, of files with problems, and of reloads.
func printFiles(w *table, s *admin.Status) {
	if len(s.Networks) > 0 {
		w.gap()
		w.row("NETWORK", "FILE", "CNI VERSION", "PLUGINS", "NOTE")
		for _, n := range s.Networks {
			note := n.Stale
			if note != "" {
				note = "last good version: " + note
			}
			w.row(n.Name, n.File, n.CNIVersion, strings.Join(n.Plugins, ","), note)
		}
	}
	if len(s.Problems) > 0 {
		w.gap()
		w.row("PROBLEM WITH", "REASON")
		for _, p := range s.Problems {
			w.row(place(p.File, p.Line, p.Col), p.Reason)
		}
	}
	if len(s.Reloads) > 0 {
		w.gap()
		w.row("RELOAD", "TIME", "WHY")
		for _, r := range s.Reloads {
			w.row(fmt.Sprint(r.Generation), r.Time.Local().Format(time.DateTime), r.Why)
		}
	}
}

// networkPlugin says how a plugin is run, and why not inside crinetd.
func networkPlugin(p admin.NetworkPlugin) string {
	if p.Builtin {
		return p.Type + ", built in"
	}
	return fmt.Sprintf("%s, executed: %s", p.Type, p.Why)
}

// otherNetwork names the pods that are on another network than new pods get. Names are
// those of somebody's pods.
func otherNetwork(o *admin.OtherNetwork) string {
	names := make([]string, 0, len(o.Pods))
	for _, pod := range o.Pods {
		names = append(names, fmt.Sprintf("%q", pod))
	}
	text := fmt.Sprintf("%d pods are not on network %s, which new pods get: %s", o.Count, o.Network, strings.Join(names, ", "))
	if more := o.Count - len(o.Pods); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text + ". " + moveHint
}

// runtimeLine describes the container runtime in one line.
func runtimeLine(r *admin.Runtime) string {
	text := strings.TrimSpace(r.Name + " " + r.Version)
	if r.ConfDir != "" {
		text += fmt.Sprintf(", CNI configuration in %s, plugins in %s, loaded: %s",
			r.ConfDir, strings.Join(r.BinDirs, ", "), orNone(strings.Join(r.Loaded, ", ")))
	}
	if r.Problem != "" {
		text += "; problem: " + r.Problem
	}
	return strings.TrimPrefix(text, "; ")
}

// driftPods is how many drifted pods status names.
const driftPods = 5

// driftLine is how many pods' networks are not as they were made.
func driftLine(o *options, d *admin.Drift) string {
	if len(d.Pods) == 0 {
		return "none (--drift=" + d.Mode + ")"
	}
	var names []string
	for _, pod := range d.Pods[:min(len(d.Pods), driftPods)] {
		names = append(names, harmless(pod))
	}
	if more := len(d.Pods) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	pods := "pods"
	if len(d.Pods) == 1 {
		pods = "pod"
	}
	text := o.paint(red, fmt.Sprintf("%d %s not as made: %s", len(d.Pods), pods, strings.Join(names, ", ")))
	if d.Remaking > 0 {
		text += fmt.Sprintf("; %d to be made anew", d.Remaking)
	}
	return text + " (--drift=" + d.Mode + "); crinetctl pods says what is amiss"
}

// addsLine is how busy ADD is.
func addsLine(a admin.Adds) string {
	text := fmt.Sprintf("%d run, %d wait", a.Running, a.Waiting)
	if a.Limit > 0 {
		text += fmt.Sprintf(", %d may run at once", a.Limit)
	}
	if a.Retries > 0 {
		text += fmt.Sprintf("; %d were tried again in place, since the plugins were busy", a.Retries)
	}
	return text
}

// hostPortsLine is how many hostPorts are mapped, and what is in the way.
func hostPortsLine(h *admin.HostPorts) string {
	text := fmt.Sprintf("%d mapped for %d pods", h.Mappings, h.Pods)
	if h.Unavailable != "" {
		text = h.Unavailable
	}
	if h.Listeners != "" {
		text += "; host processes on a port are not all seen: " + h.Listeners
	}
	if h.Flows != "" {
		text += "; older UDP and SCTP flows are not ended: " + h.Flows
	}
	return text
}

// rangeWidth is how wide the bar of a range is, in characters.
const rangeWidth = 20

// addressRange is how full a range of addresses is.
func addressRange(r admin.AddressRange) string {
	usable := r.Size - min(r.Size, r.Reserved)
	text := fmt.Sprintf("%s %s [%s] %s used, %s free, %s leaked of %s", r.Network, r.Range, rangeBar(r.Used, r.Leaked, usable),
		count(r.Used), count(r.Free), count(r.Leaked), count(usable))
	if !r.Selected {
		text += "; not for new pods"
	}
	if r.Problem != "" {
		text += "; problem: " + r.Problem
	}
	return text
}

// rangeBar draws what is used as #, what is leaked as !, and what is free as dots. What
// there is of a kind shows.
func rangeBar(used, leaked, usable uint64) string {
	part := func(n uint64) int {
		if n == 0 || usable == 0 {
			return 0
		}
		return max(1, int(float64(n)/float64(usable)*rangeWidth))
	}
	marks := min(part(leaked), rangeWidth)
	full := min(part(used), rangeWidth-marks)
	return strings.Repeat("#", full) + strings.Repeat("!", marks) + strings.Repeat(".", rangeWidth-full-marks)
}

// count is a number of addresses; more than anybody counts is many.
func count(n uint64) string {
	if n >= 1<<52 {
		return "many"
	}
	return fmt.Sprint(n)
}

func dhcpDaemon(d admin.DHCPDaemon) string {
	if d.PID == 0 {
		return fmt.Sprintf("%s: %s", d.Socket, orNone(d.Reason))
	}
	whose := "somebody else's"
	switch {
	case d.Own && d.Starts == 0:
		whose = "started by an earlier crinetd"
	case d.Own:
		whose = fmt.Sprintf("started by crinetd, %d times so far", d.Starts)
	}
	return fmt.Sprintf("%s: process %d, %s", d.Socket, d.PID, whose)
}

func watch(w *admin.Watch) string {
	text := fmt.Sprintf("%d scans, %d probes, the last scan at %s", w.Scans, w.Probes, w.LastScan.Local().Format(time.DateTime))
	if w.Error != "" {
		text += "; changes are found by polling only: " + w.Error
	}
	return text
}
