package doctor

import "testing"

// told is a containerd that has loaded crinet's configuration.
func told(change func(*Runtime)) *Runtime {
	r := &Runtime{Name: "containerd", Version: "v2.1.0", Told: true, ConfDir: "/etc/crinet/net.d", BinDirs: []string{"/opt/cni/bin"}, MaxConfNum: 1,
		InternalLoopback: true, Loaded: []string{"crinet"}}
	if change != nil {
		change(r)
	}
	return r
}

const ownConf = `{"cniVersion":"1.1.0","name":"crinet","plugins":[{"type":"crinet"}]}`

func TestRuntimeChecks(t *testing.T) {
	t.Parallel()
	tree := func(more ...string) map[string]string {
		return conf(append([]string{"/etc/default/crinetd", "CRINETD_FLAGS=\n", "/etc/crinet/net.d/00-crinet.conflist", ownConf, "/opt/cni/bin/crinet", "#!/bin/sh\n"}, more...)...)
	}
	without := func(name string) map[string]string {
		files := tree()
		delete(files, name)
		return files
	}
	up := &Crinetd{Ready: true}
	run(t, []tc{
		{name: "answers", check: "containerd-answers", runtime: told(nil),
			want: OK, found: "containerd v2.1.0 answers on /run/containerd/containerd.sock"},
		{name: "away", check: "containerd-answers",
			want: Outcome(Error), found: "no containerd runs: nobody is there", mend: "systemctl start containerd"},
		{name: "hangs", check: "containerd-answers", files: map[string]string{"/proc/7/comm": "containerd\n"},
			want: Outcome(Error), found: "containerd runs but gave no answer", mend: "systemctl restart containerd"},
		{name: "new", check: "containerd-version", runtime: told(nil),
			want: OK},
		{name: "1.6", check: "containerd-version", runtime: told(func(r *Runtime) { r.Version = "1.6.20~ds1" }),
			want: OK},
		{name: "1.5", check: "containerd-version", runtime: told(func(r *Runtime) { r.Version = "v1.5.9" }),
			want: Outcome(Warning), found: "v1.5.9", mend: "1.6"},
		{name: "CRI-O", check: "containerd-version", runtime: told(func(r *Runtime) { r.Name = "cri-o" }),
			want: Outcome(Warning), found: "cri-o"},
		{name: "loaded", check: "containerd-conf", files: tree(), crinetd: up, runtime: told(nil),
			want: OK, found: "comes first"},
		{name: "not there", check: "containerd-conf", files: without("/etc/crinet/net.d/00-crinet.conflist"), crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "is not in /etc/crinet/net.d, which has: nothing", mend: "systemctl restart crinetd"},
		{name: "Cilium", check: "containerd-conf", files: map[string]string{"/etc/default/crinetd": "", "/etc/crinet/net.d/00-crinet.conflist.cilium_bak": ownConf}, crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "Cilium takes", mend: "cni.exclusive=false"},
		{name: "not first", check: "containerd-conf", files: tree("/etc/crinet/net.d/00-a.conf", "{}"), crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "00-a.conf sorts before", mend: "mv /etc/crinet/net.d/00-a.conf"},
		{name: "not loaded", check: "containerd-conf", files: tree(), crinetd: up, runtime: told(func(r *Runtime) { r.Loaded = []string{"other"} }),
			want: Outcome(Error), found: "it has loaded: other", mend: "systemctl restart containerd"},
		{name: "load error", check: "containerd-conf", files: tree(), crinetd: up, runtime: told(func(r *Runtime) { r.LoadError = "cni plugin not initialized" }),
			want: Outcome(Error), found: "cni plugin not initialized"},
		{name: "not crinet's", check: "containerd-conf", files: tree("/etc/crinet/net.d/00-crinet.conflist", mynet), crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "is not crinet's any more", mend: "rm /etc/crinet/net.d/00-crinet.conflist"},
		{name: "another place", check: "containerd-conf", files: tree(), flags: []string{"--runtime-cni-conf-dir=/etc/old"}, crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "/etc/old", mend: "--runtime-cni-conf-dir"},
		{name: "noop", check: "containerd-conf", files: tree(), flags: []string{"--network-plugin=noop"}, crinetd: up, runtime: told(nil),
			want: Skipped},
		{name: "away", check: "containerd-conf", files: tree(), crinetd: up,
			want: Unknown},
		{name: "internal", check: "containerd-loopback", runtime: told(nil),
			want: OK},
		{name: "plugin", check: "containerd-loopback", files: tree("/opt/cni/bin/loopback", "#!x"), runtime: told(func(r *Runtime) { r.InternalLoopback = false }),
			want: OK, found: "/opt/cni/bin"},
		{name: "missing", check: "containerd-loopback", files: tree(), runtime: told(func(r *Runtime) { r.InternalLoopback = false }),
			want: Outcome(Error), found: "none of /opt/cni/bin", mend: "use_internal_loopback"},
		{name: "one", check: "containerd-max-conf-num", files: tree(), runtime: told(nil),
			want: OK},
		{name: "all, of one", check: "containerd-max-conf-num", files: tree(), runtime: told(func(r *Runtime) { r.MaxConfNum = 0 }),
			want: OK, found: "no second"},
		{name: "all, of two", check: "containerd-max-conf-num", files: tree("/etc/crinet/net.d/20-b.conflist", "{}"), runtime: told(func(r *Runtime) { r.MaxConfNum = 0 }),
			want: Outcome(Warning), found: "has 2 networks", mend: "max_conf_num = 1"},
		{name: "none", check: "containerd-handlers", runtime: told(nil),
			want: OK},
		{name: "own", check: "containerd-handlers", runtime: told(func(r *Runtime) { r.Handlers = map[string]string{"kata": "/etc/kata"} }),
			want: Outcome(Info), found: "kata (/etc/kata)", mend: "--runtime-handlers"},
		{name: "served", check: "containerd-handlers", flags: []string{"--runtime-handlers=kata"}, runtime: told(func(r *Runtime) { r.Handlers = map[string]string{"kata": "/etc/kata"} }),
			want: OK},
		{name: "there", check: "crinet-plugin", files: tree(), crinetd: up, runtime: told(nil),
			want: OK},
		{name: "missing", check: "crinet-plugin", files: without("/opt/cni/bin/crinet"), crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "none of /opt/cni/bin", mend: "systemctl restart crinetd"},
		{name: "empty", check: "crinet-plugin", files: tree("/opt/cni/bin/crinet", ""), crinetd: up, runtime: told(nil),
			want: Outcome(Error), found: "is empty", mend: "systemctl restart crinetd"},
	})
}
