package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crinet-project/crinet/runtime/admin"
)

// steps are the columns of a pod's lifecycle, in its order.
var steps = [...]string{"create", "netns", "plugin", "start"}

func printStatus(stdout io.Writer, s admin.Status) error {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	row := func(name, value string) { fmt.Fprintf(w, "%s:\t%s\n", name, value) }
	row("crinetd", s.Version)
	row("Network plugin", s.Plugin)
	if s.Ready {
		row("Network ready", "yes")
	} else {
		row("Network ready", "no: "+s.Reason)
	}
	if s.Network != "" {
		row("Network", fmt.Sprintf("%s (%s)", s.Network, s.NetworkFile))
	}
	row("Pod CIDR", orNone(strings.Join(s.PodCIDRs, ", ")))
	row("Undo pending", fmt.Sprint(s.UndoPending))
	if len(s.Networks) > 0 {
		fmt.Fprintln(w, "\nNETWORK\tFILE\tCNI VERSION\tPLUGINS\tNOTE")
		for _, n := range s.Networks {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.Name, n.File, n.CNIVersion, strings.Join(n.Plugins, ","), n.Stale)
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(w, "\nPROBLEM WITH\tREASON")
		for _, p := range s.Problems {
			fmt.Fprintf(w, "%s\t%s\n", p.File, p.Reason)
		}
	}
	return w.Flush()
}

func printPods(stdout io.Writer, pods []admin.Pod, now time.Time) error {
	w := tabwriter.NewWriter(stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tPOD\tSANDBOX\tSTATE\tNETWORK\tADDRESSES\tHOSTPORTS\t"+
		strings.ToUpper(strings.Join(steps[:], "\t"))+"\tAGE")
	for _, p := range pods {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s", p.Namespace, p.Name, short(p.SandboxID), p.State, p.Network,
			orNone(strings.Join(p.Addresses, ",")), orNone(strings.Join(p.HostPorts, ",")))
		for _, step := range steps {
			fmt.Fprintf(w, "\t%s", stepTime(p, step))
		}
		fmt.Fprintf(w, "\t%s\n", age(p, now))
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
