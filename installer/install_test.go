package installer

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crinet-project/crinet/internal/kubelet"
)

// wants says which files of a tree have what in them afterwards.
var wants = map[string]map[string][]string{
	"kubeadm, flags": {
		"/etc/containerd/config.toml":         {"# SystemdCgroup is ours", "      conf_dir = \"/etc/crinet/net.d\"\n", "sandbox_image"},
		"/var/lib/kubelet/kubeadm-flags.env":  {`"--container-runtime-endpoint=unix:///run/crinet/cri.sock --pod-infra`},
		"/var/lib/kubelet/config.yaml":        {`containerRuntimeEndpoint: ""`},
		"/etc/default/crinetd":                {"CRINETD_FLAGS=--network-plugin=cni\n"},
		"/etc/systemd/system/crinetd.service": {"ExecStart=/usr/local/bin/crinetd $CRINETD_FLAGS"},
		"/usr/local/bin/crinetd":              {"daemon"},
	},
	"kubeadm, configuration file": {
		"/etc/containerd/config.toml":           {"imports"},
		"/etc/containerd/conf.d/50-crinet.toml": {"version = 3\n", `conf_dir = "/etc/crinet/net.d"`, "use_internal_loopback = true"},
		"/var/lib/kubelet/config.yaml":          {"containerRuntimeEndpoint: unix:///run/crinet/cri.sock\nlogging: {}"},
		"/etc/default/crinetd":                  {"--container-runtime-endpoint=unix:///run/other/containerd.sock"},
	},
	"kubelet with a drop-in folder": {
		"/etc/containerd/config.toml":   {"[plugins.'io.containerd.cri.v1.runtime'.cni]\n  use_internal_loopback = true\n  conf_dir = \"/etc/crinet/net.d\"\n  max_conf_num = 1\n"},
		"/etc/kubelet.d/90-crinet.conf": {"kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/crinet/cri.sock\n"},
		"/etc/kubelet.yaml":             {"kind: KubeletConfiguration\n"},
	},
	"plain containerd": {
		"/etc/containerd/config.toml": {"version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  conf_dir = \"/etc/crinet/net.d\"\n"},
	},
	"k3s": {
		"/etc/rancher/k3s/config.yaml":                  {"max-pods=50"},
		"/etc/rancher/k3s/config.yaml.d/90-crinet.yaml": {"kubelet-arg+:\n  - container-runtime-endpoint=unix:///run/crinet/cri.sock\n"},
		"/etc/default/crinetd":                          {"--container-runtime-endpoint=unix:///run/k3s/containerd/containerd.sock --cni-conf-dir=/var/lib/rancher/k3s/agent/etc/cni/net.d"},
	},
	"rke2": {
		"/etc/rancher/rke2/config.yaml.d/90-crinet.yaml": {"kubelet-arg+:"},
	},
	"package": {
		"/etc/default/crinetd": {"CRINETD_FLAGS=\"--network-plugin=mynet\"\n"},
		"/usr/bin/crinetd":     {"x"},
	},
}

// restarts are the units that are restarted on each node, in this order.
var restarts = map[string][]string{
	"kubeadm, flags":                {"containerd", "crinetd", "kubelet"},
	"kubeadm, configuration file":   {"containerd", "crinetd", "kubelet"},
	"kubelet with a drop-in folder": {"containerd", "crinetd", "kubelet"},
	"plain containerd":              {"containerd", "crinetd"},
	"k3s":                           {"crinetd", "k3s"},
	"rke2":                          {"crinetd", "rke2-agent"},
	"package":                       {"containerd", "crinetd"},
}

// TestInstall installs on each kind of node twice, and uninstalls twice: the node is
// as it was, to the byte.
func TestInstall(t *testing.T) {
	t.Parallel()
	for kind, files := range trees {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			root := makeTree(t, files)
			before := snapshot(t, root)
			system := &double{root: root}
			i, steps := newInstaller(t, root, system)
			if err := i.Install(t.Context()); err != nil {
				t.Fatal(err)
			}
			for name, parts := range wants[kind] {
				text, err := os.ReadFile(filepath.Join(root, name))
				if err != nil {
					t.Error(err)
				}
				for _, part := range parts {
					if !strings.Contains(string(text), part) {
						t.Errorf("%s has no %q:\n%s", name, part, text)
					}
				}
			}
			var restarted []string
			for _, call := range system.calls {
				if unit, ok := strings.CutPrefix(call, "restart "); ok {
					restarted = append(restarted, strings.TrimSuffix(unit, ".service"))
				}
			}
			if !slices.Equal(restarted, restarts[kind]) {
				t.Errorf("restarted %q, want %q", restarted, restarts[kind])
			}
			installed := snapshot(t, root)
			again, _ := newInstaller(t, root, system)
			if err := again.Install(t.Context()); err != nil {
				t.Fatal(err)
			}
			same(t, "installed again", installed, snapshot(t, root))
			for range 2 {
				if err := again.Uninstall(t.Context()); err != nil {
					t.Fatal(err)
				}
				same(t, "uninstalled", before, snapshot(t, root))
			}
			if len(*steps) == 0 {
				t.Error("no step was told")
			}
		})
	}
}

// TestFailures has every step of an installation fail, on every kind of node: each
// time the node is as it was, to the byte, and the error names the step.
func TestFailures(t *testing.T) {
	t.Parallel()
	for kind, files := range trees {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			system := &double{root: makeTree(t, files)}
			i, steps := newInstaller(t, system.root, system)
			if err := i.Install(t.Context()); err != nil {
				t.Fatal(err)
			}
			services := slices.Clone(system.calls)
			for _, call := range services {
				if strings.HasPrefix(call, "ask ") {
					call = "ask"
				}
				failing := &double{root: makeTree(t, files), fail: call}
				before := snapshot(t, failing.root)
				i, _ := newInstaller(t, failing.root, failing)
				if err := i.Install(t.Context()); !errors.Is(err, errFails) {
					t.Errorf("%s fails: %v", call, err)
				}
				same(t, call+" fails", before, snapshot(t, failing.root))
			}
			for _, name := range *steps {
				path, ok := strings.CutPrefix(name, "write ")
				if !ok {
					continue
				}
				root := makeTree(t, files)
				before := snapshot(t, root)
				i, _ := newInstaller(t, root, &double{root: root})
				i.root.fail = func(at string) error {
					if at == path {
						i.root.fail = nil
						return errFails
					}
					return nil
				}
				if err := i.Install(t.Context()); !errors.Is(err, errFails) || !strings.Contains(err.Error(), name) {
					t.Errorf("%s fails: %v", name, err)
				}
				same(t, name+" fails", before, snapshot(t, root))
			}
		})
	}
}

// TestTrial: a throwaway network that cannot be attached is a failure like others.
func TestTrial(t *testing.T) {
	t.Parallel()
	root := makeTree(t, trees["kubeadm, flags"])
	before := snapshot(t, root)
	i, _ := newInstaller(t, root, &double{root: root})
	i.Trial = func(context.Context) error { return errFails }
	if err := i.Install(t.Context()); !errors.Is(err, errFails) || !strings.Contains(err.Error(), "throwaway") {
		t.Errorf("%v", err)
	}
	same(t, "the trial fails", before, snapshot(t, root))
}

// TestUpgrade installs other programs over the first ones; a failure gives those back,
// and uninstall what was before both.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	root := makeTree(t, trees["kubeadm, flags"])
	before := snapshot(t, root)
	system := &double{root: root}
	first, _ := newInstaller(t, root, system)
	if err := first.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	installed := snapshot(t, root)
	later, _ := newInstaller(t, root, system)
	later.Source = makeTree(t, map[string]string{"crinetd": "later", "crinet": "plugin", "crinetctl": "tool"})
	system.fail, system.calls = "ask", nil
	if err := later.Install(t.Context()); !errors.Is(err, errFails) {
		t.Errorf("%v", err)
	}
	same(t, "the upgrade failed", installed, snapshot(t, root))
	system.fail, system.calls = "", nil
	if err := later.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(system.calls, "restart containerd.service") || !slices.Contains(system.calls, "restart crinetd.service") {
		t.Errorf("the upgrade called %q", system.calls)
	}
	if text := snapshot(t, root)["/usr/local/bin/crinetd"]; !strings.HasSuffix(text, " later") {
		t.Errorf("crinetd is %q", text)
	}
	if err := later.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	same(t, "uninstalled", before, snapshot(t, root))
}

// TestChangedSince: uninstall leaves what others changed since, but for what names
// crinet.
func TestChangedSince(t *testing.T) {
	t.Parallel()
	root := makeTree(t, trees["kubeadm, configuration file"])
	i, _ := newInstaller(t, root, nil)
	if err := i.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(root, "/var/lib/kubelet/config.yaml")
	if err := os.WriteFile(config, []byte("containerRuntimeEndpoint: unix:///run/crinet/cri.sock\nmaxPods: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(config)
	if want := "containerRuntimeEndpoint: unix:///run/other/containerd.sock\nmaxPods: 7\n"; err != nil || string(text) != want {
		t.Errorf("the kubelet's configuration is %q, %v, want %q", text, err, want)
	}
}

// TestRefusals: what cannot be installed on is refused before anything is changed, and
// the error says what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	kubeadm := trees["kubeadm, flags"]
	for want, change := range map[string][2]string{
		"disables CRI":              {containerdConfig, "version = 2\ndisabled_plugins = [\"cri\"]\n"},
		"containerd config migrate": {containerdConfig, "[plugins.cri]\n"},
		"write it as a section":     {containerdConfig, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncni = {conf_dir = \"/x\"}\n"},
		"CRI-O":                     {kubelet.KubeadmFlags, "KUBELET_KUBEADM_ARGS=--container-runtime-endpoint=unix:///var/run/crio/crio.sock\n"},
		"no unix socket":            {kubelet.KubeadmFlags, "KUBELET_KUBEADM_ARGS=--container-runtime-endpoint=tcp://1.2.3.4:5\n"},
		"endpoint of its own":       {"/etc/rancher/k3s/config.yaml", "container-runtime-endpoint: /run/containerd/containerd.sock\n"},
	} {
		files := maps.Clone(kubeadm)
		files[change[0]] = change[1]
		if strings.Contains(change[0], "k3s") {
			files["/etc/systemd/system/k3s.service"] = ""
		}
		root := makeTree(t, files)
		before := snapshot(t, root)
		i, _ := newInstaller(t, root, nil)
		if err := i.Install(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		same(t, want, before, snapshot(t, root))
	}
	i, _ := newInstaller(t, makeTree(t, map[string]string{"/x": ""}), nil)
	if _, err := i.Plan(); err == nil || !strings.Contains(err.Error(), "containerd config default") {
		t.Errorf("without containerd: %v", err)
	}
}

// TestPlan: the plan names every file and every restart, and changes nothing.
func TestPlan(t *testing.T) {
	t.Parallel()
	root := makeTree(t, trees["kubeadm, flags"])
	before := snapshot(t, root)
	i, _ := newInstaller(t, root, nil)
	plan, err := i.Plan()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"containerd", kubelet.KubeadmFlags, flagsFile, "Restart kubelet.service", "Restart containerd.service; its pods live on"} {
		if !strings.Contains(plan.String(), want) {
			t.Errorf("the plan has no %q:\n%s", want, plan)
		}
	}
	same(t, "planned", before, snapshot(t, root))
}

// A node with faults is left as it is, unless that is forced.
func TestCheckBefore(t *testing.T) {
	t.Parallel()
	root := makeTree(t, trees["plain containerd"])
	i, steps := newInstaller(t, root, nil)
	before := snapshot(t, root)
	i.Check = func(context.Context) error { return errFails }
	if err := i.Install(t.Context()); !errors.Is(err, errFails) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("a node with a fault: %v", err)
	}
	same(t, "refused", before, snapshot(t, root))
	i.Force = true
	if err := i.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(*steps, func(s string) bool { return strings.Contains(s, "all the same: "+errFails.Error()) }) {
		t.Errorf("what was forced is not told: %q", *steps)
	}
	i.Check = func(context.Context) error { t.Error("an installation that stands is looked at again"); return nil }
	if err := i.Install(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}
