package doctor

import "testing"

const goodUnit = "[Unit]\n[Service]\nExecStart=/usr/bin/crinetd $CRINETD_FLAGS\nRestart=always\nWatchdogSec=60s\n"

func TestCrinetdChecks(t *testing.T) {
	t.Parallel()
	unit := map[string]string{
		"/usr/lib/systemd/system/crinetd.service":                     goodUnit,
		"/etc/systemd/system/multi-user.target.wants/crinetd.service": "->/usr/lib/systemd/system/crinetd.service",
		"/etc/systemd/system/sockets.target.wants/crinetd.socket":     "->/usr/lib/systemd/system/crinetd.socket",
	}
	but := func(name, text string) map[string]string {
		changed := map[string]string{}
		for k, v := range unit {
			changed[k] = v
		}
		changed[name] = text
		if text == "" {
			delete(changed, name)
		}
		return changed
	}
	ready := &Crinetd{Version: "v1", Ready: true, Network: "mynet", NetworkFile: "/etc/cni/net.d/10-mynet.conflist"}
	run(t, []tc{
		{name: "answers", check: "crinetd-answers", files: unit, crinetd: ready,
			want: OK, found: "v1"},
		{name: "away", check: "crinetd-answers", files: unit,
			want: Outcome(Error), found: "does not run", mend: "systemctl start crinetd"},
		{name: "hangs", check: "crinetd-answers", files: map[string]string{"/etc/default/crinetd": "", "/proc/77/comm": "crinetd\n"},
			want: Outcome(Error), found: "process 77", mend: "journalctl -u crinetd"},
		{name: "not installed", check: "crinetd-answers",
			want: Skipped, found: "not installed"},
		{name: "packaged only", check: "crinetd-answers", files: map[string]string{"/usr/lib/systemd/system/crinetd.service": goodUnit},
			want: Skipped, found: "not installed"},
		{name: "uninstalled", check: "crinetd-answers", files: map[string]string{"/run/systemd/system/x": "", "/var/lib/crinet/journal.db": ""},
			want: Skipped, found: "not installed"},
		{name: "no systemd", check: "crinetd-answers", files: map[string]string{"/var/lib/crinet/journal.db": ""},
			want: Outcome(Error), found: "does not run", mend: "as it was started before"},
		{name: "image", check: "crinetd-answers", files: unit, image: true,
			want: Unknown},
		{name: "ready", check: "crinetd-ready", files: unit, crinetd: ready,
			want: OK, found: "network mynet"},
		{name: "noop", check: "crinetd-ready", files: unit, crinetd: &Crinetd{Ready: true, Plugin: "noop"},
			want: OK, found: "noop"},
		{name: "not ready", check: "crinetd-ready", files: unit, crinetd: &Crinetd{Reason: "no usable network"},
			want: Outcome(Error), found: "no usable network", mend: "crinetctl status"},
		{name: "away", check: "crinetd-ready", files: unit,
			want: Unknown, found: "nobody is there"},
		{name: "same", check: "crinetd-version", files: unit, crinetd: ready,
			want: OK},
		{name: "older", check: "crinetd-version", files: unit, crinetd: &Crinetd{Version: "v0"},
			want: Outcome(Warning), found: "crinetd is v0, crinetctl is v1", mend: "systemctl restart crinetd"},
		{name: "good", check: "crinetd-unit", files: unit,
			want: OK, found: "enabled"},
		{name: "not enabled", check: "crinetd-unit", files: but("/etc/systemd/system/sockets.target.wants/crinetd.socket", ""),
			want: Outcome(Warning), found: "crinetd.socket", mend: "systemctl enable"},
		{name: "no restart", check: "crinetd-unit", files: but("/etc/systemd/system/crinetd.service.d/a.conf", "[Service]\nRestart=no\n"),
			want: Outcome(Warning), found: "Restart=no (/etc/systemd/system/crinetd.service.d/a.conf:2)", mend: "Restart=always"},
		{name: "no watchdog", check: "crinetd-unit", files: but("/usr/lib/systemd/system/crinetd.service", "[Service]\nRestart=always\n"),
			want: Outcome(Info), found: "watchdog", mend: "WatchdogSec=60s"},
		{name: "packaged only", check: "crinetd-unit", files: map[string]string{"/usr/lib/systemd/system/crinetd.service": goodUnit},
			want: Skipped, found: "not installed"},
		{name: "no service", check: "crinetd-unit",
			want: Skipped},
		{name: "good", check: "crinetd-failures", files: unit, crinetd: ready,
			want: OK, found: "0 ADDs"},
		{name: "a pod's own fault", check: "crinetd-failures", files: unit, crinetd: &Crinetd{AddFailures: 2},
			want: OK, found: "2 ADDs"},
		{name: "in a row", check: "crinetd-failures", files: unit, crinetd: &Crinetd{AddFailures: 7, Pods: []Pod{{LastError: "no route\x1b[31m"}}},
			want: Outcome(Error), found: `7 ADDs failed in a row, the last error kept: no route\x1b[31m`, mend: "journalctl"},
		{name: "stuck", check: "crinetd-failures", files: unit, crinetd: &Crinetd{Pods: []Pod{{Name: "a/b", Sandbox: "0123456789abcdef", Tries: 4, LastError: "boom"}}},
			want: Outcome(Warning), found: "a/b (sandbox 0123456789abc, 4 tries: boom)", mend: "crinetctl forget"},
		{name: "good", check: "crinetd-problems", files: unit, crinetd: ready,
			want: OK},
		{name: "hostPorts", check: "crinetd-problems", files: unit, crinetd: &Crinetd{HostPortProblem: "no nf_tables"},
			want: Outcome(Warning), found: "no nf_tables", mend: "mend what"},
		{name: "dhcp", check: "crinetd-problems", files: unit, crinetd: &Crinetd{DHCPProblem: "/run/cni/dhcp.sock: it ended"},
			want: Outcome(Warning), found: "dhcp.sock: it ended", mend: "cni-dhcp.socket"},
		{name: "runtime", check: "crinetd-problems", files: unit, crinetd: &Crinetd{RuntimeProblem: "conf dir"},
			want: Outcome(Warning), found: "conf dir", mend: "mend what"},
	})
}

// Sockets that others may write to are told, and their folder.
func TestSocketModes(t *testing.T) {
	t.Parallel()
	// The modes of the harness's files are open to all, the folder's are not.
	run(t, []tc{
		{name: "open", check: "socket-modes", files: map[string]string{"/run/crinet/cri.sock": ""},
			want: Outcome(Error), found: "/run/crinet/cri.sock has the mode -rwxr-xr-x", mend: "chmod go-rwx /run/crinet/cri.sock"},
		{name: "elsewhere", check: "socket-modes", files: map[string]string{"/run/other/cri.sock": ""}, flags: []string{"--run-dir=/run/other"},
			want: Outcome(Error), found: "/run/other/cri.sock", mend: "/run/other/cri.sock"},
		{name: "none", check: "socket-modes",
			want: Skipped, found: "no sockets"},
		{name: "good", check: "socket-modes", files: map[string]string{"/run/crinet/cri.sock": "600"},
			want: OK, found: "1 socket in"},
	})
}
