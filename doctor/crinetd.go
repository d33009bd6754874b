package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const crinetdConcern = "crinetd"

// manyFailures is how many ADDs must have failed in a row to be a finding: one or two
// can be a pod's own fault.
const manyFailures = 3

func crinetdChecks() []Check {
	return []Check{
		{Name: "crinetd-answers", Looks: "whether crinetd answers on admin.sock", Severity: Error, run: crinetdAnswers,
			Why: "the kubelet cannot start or remove pods while crinetd is away; running pods live on"},
		{Name: "crinetd-ready", Looks: "whether crinetd calls the network ready", Severity: Error, run: crinetdReady,
			After: []string{"crinetd-answers", "containerd-answers", "containerd-conf", "conf-dir", "conf-files", "network-plugin", "plugin-binaries"},
			Why:   "no new pod gets a network, and the node is NotReady"},
		{Name: "crinetd-version", Looks: "whether crinetd and crinetctl are of one release", Severity: Warning, run: crinetdVersion,
			After: []string{"crinetd-answers"}, Why: "an upgrade was not finished: the old crinetd still runs"},
		{Name: "crinetd-unit", Looks: "crinetd's units: enabled at boot, started again, watched", Severity: Warning, run: crinetdUnit,
			Why: "after a reboot or a crash the node is without its CRI socket"},
		{Name: "crinetd-failures", Looks: "ADDs that failed in a row, and what could not be removed", Severity: Error, run: crinetdFailures,
			After: []string{"crinetd-answers", "crinetd-ready", "plugin-binaries", "host-local-space"}, Why: "each new pod fails the same way"},
		{Name: "crinetd-problems", Looks: "what crinetd says of its hostPorts and of the runtime", Severity: Warning, run: crinetdProblems,
			After: []string{"crinetd-answers", "crinetd-ready", "containerd-answers", "containerd-conf", "kernel-nftables"}, Why: "crinetd cannot do a part of its work"},
		{Name: "socket-modes", Looks: "owner and mode of crinetd's sockets and their folder", Severity: Error, run: socketModes,
			Why: "who may write to these sockets is root on this node"},
	}
}

func crinetdAnswers(ctx context.Context, n *Node) Result {
	if !n.installed() {
		return skip("crinet is not installed on this node")
	}
	c, err := n.askCrinetd(ctx)
	switch {
	case err == nil:
		return good("crinetd %s answers on %s/admin.sock", c.Version, n.Options.RunDir)
	case n.Crinetd == nil:
		return unknown("%v", err)
	}
	if pids := n.crinetdPIDs(ctx); len(pids) > 0 {
		return bad(fmt.Sprintf("journalctl -u crinetd -n 50 says why; then systemctl restart crinetd (running pods live on); does it run with another --run-dir than %s?", n.Options.RunDir),
			"crinetd runs (process %d) but does not answer: %v", pids[0], err)
	}
	if n.unit(unitName) == "" {
		return bad("start crinetd as it was started before, or make it a service: crinetctl install", "crinetd does not run: %v", err)
	}
	return bad("systemctl start crinetd; if it ends again: journalctl -u crinetd -n 50", "crinetd does not run: %v", err)
}

// crinetdPIDs are the processes named crinetd.
func (n *Node) crinetdPIDs(ctx context.Context) []int {
	p, err := n.processes(ctx)
	if err != nil {
		return nil
	}
	return p.named("crinetd")
}

// withoutCrinetd is the result of a check that needs crinetd's word and has none.
func (n *Node) withoutCrinetd(err error) Result {
	if !n.installed() {
		return skip("crinet is not installed on this node")
	}
	return unknown("crinetd does not answer: %v", err)
}

func crinetdReady(ctx context.Context, n *Node) Result {
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return n.withoutCrinetd(err)
	}
	if !c.Ready {
		return bad("crinetctl status shows the network's state; the reason names what to change", "the network is not ready: %s", c.Reason)
	}
	if c.Network == "" {
		return good("the network is ready (%s)", c.Plugin)
	}
	return good("network %s of %s is ready", c.Network, c.NetworkFile)
}

func crinetdVersion(ctx context.Context, n *Node) Result {
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return n.withoutCrinetd(err)
	}
	if n.Version != "" && c.Version != n.Version {
		return bad("systemctl restart crinetd (calls wait in its sockets meanwhile)", "crinetd is %s, crinetctl is %s", c.Version, n.Version)
	}
	return good("both are %s", c.Version)
}

func crinetdUnit(_ context.Context, n *Node) Result {
	unit := n.unit(unitName)
	if unit == "" {
		return skip("crinetd is no service of systemd here")
	}
	var missing []string
	for name, link := range map[string]string{
		"crinetd.service": "multi-user.target.wants/crinetd.service", "crinetd.socket": "sockets.target.wants/crinetd.socket",
	} {
		if !n.exists("/etc/systemd/system/"+link) && !n.exists("/usr/lib/systemd/system/"+link) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return bad("systemctl enable crinetd.socket crinetd.service", "not enabled, so not started at boot: %s", strings.Join(missing, ", "))
	}
	settings := map[string]string{}
	files := append([]string{unit}, n.glob("/etc/systemd/system/crinetd.service.d/*.conf")...)
	for _, l := range n.grep(files, func(text string) bool { return strings.Contains(text, "=") }) {
		key, value, _ := strings.Cut(l.Text, "=")
		settings[key] = value + " (" + l.String() + ")"
	}
	if r := settings["Restart"]; !strings.HasPrefix(r, "always") {
		return bad("set Restart=always in "+unit, "the unit does not start crinetd again however it ends: Restart=%s", r)
	}
	if w := settings["WatchdogSec"]; w == "" || strings.HasPrefix(w, "0 ") {
		return bad("set WatchdogSec=60s in "+unit, "the watchdog is off: nobody ends a crinetd that hangs").at(Info)
	}
	return good("%s is enabled, with restart and watchdog", unit)
}

func crinetdFailures(ctx context.Context, n *Node) Result {
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return n.withoutCrinetd(err)
	}
	last := ""
	var stuck []string
	for _, p := range c.Pods {
		if p.LastError == "" {
			continue
		}
		last = p.LastError
		if p.Tries > 1 {
			stuck = append(stuck, fmt.Sprintf("%s (sandbox %.13s, %d tries: %s)", p.Name, p.Sandbox, p.Tries, p.LastError))
		}
	}
	switch {
	case c.AddFailures >= manyFailures:
		found := fmt.Sprintf("%d ADDs failed in a row", c.AddFailures)
		if last != "" {
			found += ", the last error kept: " + last
		}
		return bad("journalctl -u crinetd | grep 'plugin=' names plugin and error; crinetctl status shows the network", "%s", found)
	case len(stuck) > 0:
		return bad("mend what the error names, crinetd tries again; or give up: crinetctl forget SANDBOX --reason WHY",
			"%d networks cannot be removed: %s", len(stuck), few(stuck)).at(Warning).because("their pods stay Terminating, and their addresses taken")
	}
	return good("no ADD has failed since the last that worked but %d, %d removals under way", c.AddFailures, c.UndoPending)
}

func crinetdProblems(ctx context.Context, n *Node) Result {
	c, err := n.askCrinetd(ctx)
	if err != nil {
		return n.withoutCrinetd(err)
	}
	switch {
	case c.HostPortProblem != "":
		return bad("mend what the reason names; crinetd tries again by itself", "hostPorts: %s", c.HostPortProblem).because("pods with hostPorts are refused, or are not reached")
	case c.RuntimeProblem != "":
		return bad("mend what the reason names; crinetd looks again every few seconds", "the runtime: %s", c.RuntimeProblem)
	}
	return good("crinetd reports no problem, %d hostPorts are mapped", c.Mapped)
}

func socketModes(_ context.Context, n *Node) Result {
	dir := n.path(n.Options.RunDir)
	paths, err := filepath.Glob(dir + "/*.sock")
	if err != nil || len(paths) == 0 {
		return skip("there are no sockets in %s", n.Options.RunDir)
	}
	for _, path := range append(paths, dir) {
		info, err := os.Stat(path)
		if err != nil {
			continue // gone meanwhile
		}
		open := info.Mode().Perm() & 0o077 // sockets: nobody else
		if path == dir {
			open &= 0o022
		}
		name := filepath.Join(n.Options.RunDir, strings.TrimPrefix(path, dir))
		if open != 0 || owner(path) != uint32(unix.Geteuid()) && owner(path) != 0 {
			return bad(fmt.Sprintf("chown root:root %s && chmod go-rwx %s", name, name), "%s has the mode %v and belongs to user %d", name, info.Mode().Perm(), owner(path))
		}
	}
	return good("%d sockets in %s are root's alone", len(paths), n.Options.RunDir)
}
