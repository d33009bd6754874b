package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/crinet-project/crinet/runtime/admin"
)

// newPods makes the command pods.
func newPods(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "pods",
		Short: "Show the pods that crinetd has networked: network, addresses, hostPorts, the four steps' times",
		Args:  noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			pods, err := o.client().Pods(c.Context())
			if err != nil {
				return err
			}
			return o.print(pods, func() error { return printPods(o.stdout, pods, time.Now()) })
		},
	}
}

// steps are the columns of a pod's lifecycle, in its order.
var steps = [...]string{"create", "netns", "plugin", "start"}

// moveHint is how pods come to the selected network.
const moveHint = "They keep it until they are made anew: delete them (kubectl delete pod), and what manages them makes them on the selected one."

func printPods(stdout io.Writer, pods []admin.Pod, now time.Time) error {
	w := newTable(stdout)
	w.row("NAMESPACE", "POD", "SANDBOX", "STATE", "NETWORK", "ADDRESSES", "HOSTPORTS",
		strings.ToUpper(strings.Join(steps[:], "\t")), "AGE")
	others := 0
	for _, p := range pods {
		state := p.State
		if p.Adopted {
			state += ", adopted"
		}
		network := p.Network
		if p.OtherNetwork {
			network += " (not selected)"
			others++
		}
		cells := []string{p.Namespace, p.Name, short(p.SandboxID), state, network,
			orNone(strings.Join(p.Addresses, ",")), orNone(strings.Join(p.HostPorts, ","))}
		for _, step := range steps {
			cells = append(cells, stepTime(p, step))
		}
		w.row(append(cells, age(p, now))...)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if others > 0 {
		if _, err := fmt.Fprintf(stdout, "\nPods on a network that is not selected: %d. %s\n", others, moveHint); err != nil {
			return err
		}
	}
	for _, p := range pods {
		if p.HostPortsLimited != "" {
			if _, err := fmt.Fprintf(stdout, "\n%s/%s: hostPorts: %s\n", p.Namespace, p.Name, p.HostPortsLimited); err != nil {
				return err
			}
		}
		if p.Drift != "" {
			if _, err := fmt.Fprintf(stdout, "\n%s/%s: not as it was made%s: %s\n", p.Namespace, p.Name, driftedFor(p, now), harmless(p.Drift)); err != nil {
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

// driftedFor is how long a pod has been drifted.
func driftedFor(p admin.Pod, now time.Time) string {
	if p.DriftSince == nil {
		return ""
	}
	return ", noticed " + ago(*p.DriftSince, now) + " ago"
}

func age(p admin.Pod, now time.Time) string {
	if len(p.Steps) == 0 {
		return "-"
	}
	return now.Sub(p.Steps[0].Start).Round(time.Second).String()
}

// short returns the part of a sandbox's id that crictl shows.
func short(id string) string { return id[:min(len(id), 13)] }
