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
	w.row("Pod CIDR:", orNone(strings.Join(s.PodCIDRs, ", ")))
	w.row("Undo pending:", fmt.Sprint(s.UndoPending))
	if s.AddFailures > 0 {
		w.row("Failed ADDs:", fmt.Sprintf("%d in a row", s.AddFailures))
	}
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

// networkPlugin says how a plugin is run, and why not inside crinetd.
func networkPlugin(p admin.NetworkPlugin) string {
	if p.Builtin {
		return p.Type + ", built in"
	}
	return fmt.Sprintf("%s, executed: %s", p.Type, p.Why)
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

// printForgotten says what may remain on the node.
func printForgotten(stdout io.Writer, pods []admin.Pod) error {
	for _, p := range pods {
		_, err := fmt.Fprintf(stdout, "Forgotten: sandbox %s of pod %s/%s on network %s. On the node may remain: the addresses %s in its IPAM, its interface, rules and namespace %s.\n",
			p.SandboxID, p.Namespace, p.Name, p.Network, orNone(strings.Join(p.Addresses, ", ")), orNone(p.NetNS))
		if err != nil {
			return err
		}
	}
	return nil
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
		state := p.State
		if p.Adopted {
			state += ", adopted"
		}
		cells := []string{p.Namespace, p.Name, short(p.SandboxID), state, p.Network,
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
		if p.HostPortsLimited != "" {
			if _, err := fmt.Fprintf(stdout, "\n%s/%s: hostPorts: %s\n", p.Namespace, p.Name, p.HostPortsLimited); err != nil {
				return err
			}
		}
		if p.LastError != "" {
			if _, err := fmt.Fprintf(stdout, "\n%s/%s: not removed after %d tries: %s\n", p.Namespace, p.Name, p.Tries, p.LastError); err != nil {
				return err
			}
		}
	}
	return nil
}

// stepTime returns how long a step took, "-" for one that failed or still runs.
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

// short returns the part of a sandbox's id that crictl shows.
func short(id string) string { return id[:min(len(id), 13)] }

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
