package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/crinet-project/crinet/runtime/admin"
)

// steps are the columns of a pod's lifecycle, in its order.
var steps = [...]string{"create", "netns", "plugin", "start"}

func printStatus(stdout io.Writer, s admin.Status) error {
	w := newTable(stdout)
	w.row("crinetd:", s.Version)
	w.row("Network plugin:", s.Plugin)
	if s.Ready {
		w.row("Network ready:", "yes")
	} else {
		w.row("Network ready:", "no: "+s.Reason)
	}
	if s.Network != "" {
		w.row("Network:", fmt.Sprintf("%s (%s)", s.Network, s.NetworkFile))
		w.row("Selected as:", s.Selected)
	}
	if s.NetworkStatus != "" {
		w.row("STATUS:", s.NetworkStatus)
	}
	for _, d := range s.DHCPDaemons {
		w.row("dhcp daemon:", dhcpDaemon(d))
	}
	w.row("Pod CIDR:", orNone(strings.Join(s.PodCIDRs, ", ")))
	w.row("Undo pending:", fmt.Sprint(s.UndoPending))
	if s.Watch != nil {
		w.row("Directories:", watch(s.Watch))
	}
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
	return w.Flush()
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

func printPods(stdout io.Writer, pods []admin.Pod, now time.Time) error {
	w := newTable(stdout)
	w.row("NAMESPACE", "POD", "SANDBOX", "STATE", "NETWORK", "ADDRESSES", "HOSTPORTS",
		strings.ToUpper(strings.Join(steps[:], "\t")), "AGE")
	for _, p := range pods {
		cells := []string{p.Namespace, p.Name, short(p.SandboxID), p.State, p.Network,
			orNone(strings.Join(p.Addresses, ",")), orNone(strings.Join(p.HostPorts, ","))}
		for _, step := range steps {
			cells = append(cells, stepTime(p, step))
		}
		w.row(append(cells, age(p, now))...)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range pods {
		if p.LastError != "" {
			if _, err := fmt.Fprintf(stdout, "\n%s/%s: not removed after %d tries: %s\n", p.Namespace, p.Name, p.Tries, p.LastError); err != nil {
				return err
			}
		}
	}
	return nil
}

// stepTime is how long a step took; the step that failed or still runs has none.
func stepTime(p admin.Pod, step string) string {
	for _, s := range p.Steps {
		if s.Step == step && s.Duration >= 0 {
			return time.Duration(s.Duration * float64(time.Second)).Round(100 * time.Microsecond).String()
		}
	}
	return "-"
}

func age(p admin.Pod, now time.Time) string {
	if len(p.Steps) == 0 {
		return "-"
	}
	return now.Sub(p.Steps[0].Start).Round(time.Second).String()
}

// short is the part of a sandbox's id that people use, as in crictl.
func short(id string) string { return id[:min(len(id), 13)] }

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
