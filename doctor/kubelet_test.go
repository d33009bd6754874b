package doctor

import "testing"

func TestKubeletChecks(t *testing.T) {
	t.Parallel()
	tree := func(files ...string) map[string]string {
		return conf(append([]string{"/etc/default/crinetd", "CRINETD_FLAGS=\n"}, files...)...)
	}
	const flags, config = "/var/lib/kubelet/kubeadm-flags.env", "/var/lib/kubelet/config.yaml"
	const good = "containerRuntimeEndpoint: \"unix:///run/crinet/cri.sock\"\n"
	run(t, []tc{
		{name: "none", check: "kubelet-endpoint", files: tree(), image: true,
			want: Skipped, found: "no kubelet"},
		{name: "not installed", check: "kubelet-endpoint", files: conf(config, "x: y\n"), image: true,
			want: Skipped, found: "not installed"},
		{name: "configuration", check: "kubelet-endpoint", files: tree(config, good), image: true,
			want: OK, found: config + ":1"},
		{name: "default", check: "kubelet-endpoint", files: tree(config, "kind: KubeletConfiguration\n"), image: true,
			want: Outcome(Error), found: "its default", mend: "in " + config},
		{name: "containerd", check: "kubelet-endpoint", files: tree(config, "a: b\ncontainerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n"), image: true,
			want: Outcome(Error), found: "containerd.sock", mend: config + ":2"},
		{name: "flag beats configuration", check: "kubelet-endpoint", files: tree(config, good, flags, "A=\"--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock\"\n"), image: true,
			want: Outcome(Error), found: "containerd.sock", mend: flags + ":1"},
		{name: "flag", check: "kubelet-endpoint", files: tree(flags, "A=\"--container-runtime-endpoint=unix:///var/run/crinet/cri.sock\"\n"), image: true,
			want: OK, found: flags + ":1"},
		{name: "drop-in beats configuration", check: "kubelet-endpoint", files: tree("/etc/systemd/system/kubelet.service", "ExecStart=/usr/bin/kubelet --config=/etc/k.yaml --config-dir /etc/k.d\n", "/etc/k.yaml", "a: b\n", "/etc/k.d/90.conf", good), image: true,
			want: OK, found: "/etc/k.d/90.conf:1"},
		{name: "k3s", check: "kubelet-endpoint", files: tree("/etc/rancher/k3s/config.yaml.d/90-crinet.yaml", "kubelet-arg+:\n  - container-runtime-endpoint=unix:///run/crinet/cri.sock\n"), image: true,
			want: OK, found: "90-crinet.yaml:2"},
		{name: "another run dir", check: "kubelet-endpoint", files: tree(config, good), flags: []string{"--run-dir=/run/c"}, image: true,
			want: Outcome(Error), found: "unix:///run/c/cri.sock", mend: "unix:///run/c/cri.sock"},
		{name: "none", check: "kubelet-removed-flags", files: tree(flags, "A=\"--container-runtime-endpoint=x --max-pods=9\"\n"), image: true,
			want: OK},
		{name: "two", check: "kubelet-removed-flags", files: tree(flags, "# --docker\nA=\"--network-plugin=cni --cni-bin-dir=/x\"\n"), image: true,
			want: Outcome(Error), found: "--network-plugin (" + flags + ":2), --cni-bin-dir", mend: "remove it from " + flags},
		{name: "of dockershim", check: "kubelet-removed-flags", files: tree("/etc/systemd/system/kubelet.service.d/10.conf", "ExecStart=/usr/bin/kubelet --container-runtime=remote\n"), image: true,
			want: Outcome(Error), found: "--container-runtime ("},
		{name: "runs", check: "kubelet-runs", files: tree("/etc/systemd/system/kubelet.service", "", "/proc/9/comm", "kubelet\n"),
			want: OK, found: "process 9"},
		{name: "does not", check: "kubelet-runs", files: tree("/etc/systemd/system/kubelet.service", "", "/proc/9/comm", "init\n"),
			want: Outcome(Warning), found: "does not run", mend: "systemctl start kubelet"},
		{name: "image", check: "kubelet-runs", files: tree("/etc/systemd/system/kubelet.service", ""), image: true,
			want: Unknown},
	})
}
