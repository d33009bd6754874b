package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The trees of nodes. Files end as they do there: with and without a final line break,
// with flags in several places.
var trees = map[string]map[string]string{
	"kubeadm, flags": {
		"/etc/containerd/config.toml": "version = 2\n# SystemdCgroup is ours\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"x\"\n" +
			"    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/opt/cni/bin\"\n      conf_dir = \"/etc/cni/net.d\" # old\n",
		"/var/lib/kubelet/kubeadm-flags.env":                        `KUBELET_KUBEADM_ARGS="--container-runtime-endpoint=unix:///var/run/containerd/containerd.sock --pod-infra-container-image=registry.k8s.io/pause:3.9"` + "\n",
		"/var/lib/kubelet/config.yaml":                              "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: \"\"\n",
		"/usr/lib/systemd/system/kubelet.service":                   "[Service]\nExecStart=/usr/bin/kubelet\n",
		"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": "[Service]\nEnvironment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n",
	},
	"kubeadm, configuration file": {
		"/etc/containerd/config.toml":             "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n",
		"/var/lib/kubelet/kubeadm-flags.env":      "KUBELET_KUBEADM_ARGS=\"\"\n",
		"/var/lib/kubelet/config.yaml":            "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/other/containerd.sock\nlogging: {}",
		"/etc/systemd/system/kubelet.service":     "[Service]\nExecStart=/usr/bin/kubelet --config=/var/lib/kubelet/config.yaml\n",
		"/var/lib/kubelet/instance-config.yaml":   "containerRuntimeEndpoint: unix:///run/other/containerd.sock\n",
		"/etc/containerd/certs.d/example/hosts.x": "",
	},
	"kubelet with a drop-in folder": {
		"/etc/containerd/config.toml":         "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n  max_conf_num = 1\n",
		"/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet --config /etc/kubelet.yaml --config-dir=/etc/kubelet.d\n",
		"/etc/kubelet.yaml":                   "kind: KubeletConfiguration\n",
		"/etc/kubelet.d/10-a.conf":            "kind: KubeletConfiguration\n",
	},
	"plain containerd": {
		"/etc/containerd/config.toml": "version = 2",
	},
	"k3s": {
		"/etc/systemd/system/k3s.service": "[Service]\nExecStart=/usr/local/bin/k3s server\n",
		"/etc/rancher/k3s/config.yaml":    "kubelet-arg:\n  - max-pods=50\n",
	},
	"rke2": {
		"/usr/local/lib/systemd/system/rke2-agent.service": "[Service]\nExecStart=/usr/local/bin/rke2 agent\n",
	},
	"package": {
		"/etc/containerd/config.toml":                   "version = 2\n",
		"/usr/lib/systemd/system/crinetd.service":       "[Service]\n",
		"/usr/lib/systemd/system/crinetd.socket":        "[Socket]\n",
		"/usr/bin/crinetd":                              "x",
		"/etc/systemd/system/multi-user.target.wants/x": "",
		"/etc/default/crinetd":                          "CRINETD_FLAGS=\"--network-plugin=mynet\"\n",
	},
}

// makeTree makes a tree and returns its root.
func makeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// source is a folder with the programs.
func source(t *testing.T) string {
	t.Helper()
	return makeTree(t, map[string]string{"crinetd": "daemon", "crinet": "plugin", "crinetctl": "tool"})
}

// snapshot has everything in a tree, with modes, links and contents.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		all[name] = info.Mode().String()
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			all[name] += " " + target
			return err
		case info.Mode().IsRegular():
			text, err := os.ReadFile(path)
			all[name] += " " + string(text)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// same fails the test for trees that differ.
func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if now, ok := got[name]; !ok {
			t.Errorf("%s: %s is gone", what, name)
		} else if now != want[name] {
			t.Errorf("%s: %s is %q, want %q", what, name, now, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is left: %q", what, name, got[name])
		}
	}
}

// double is a running system that fails at one of its calls.
type double struct {
	root  string
	calls []string
	fail  string // the call that fails; empty for none
}

var errFails = errors.New("it fails")

func (d *double) Systemctl(_ context.Context, args ...string) error {
	call := strings.Join(args, " ")
	d.calls = append(d.calls, call)
	if call == "restart crinetd.service" { // what crinetd does when it starts
		flags, err := os.ReadFile(filepath.Join(d.root, flagsFile))
		if err != nil {
			return err
		}
		name := filepath.Join(d.root, confDir, "00-crinet.conflist")
		if strings.Contains(string(flags), "noop") {
			if err := ignoreMissing(os.Remove(name)); err != nil {
				return err
			}
		} else if _, err := os.Stat(filepath.Dir(name)); err == nil {
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				return err
			}
		}
	}
	if call == d.fail {
		d.fail = "" // what gives back works
		return fmt.Errorf("systemctl %s: %w", call, errFails)
	}
	return nil
}

func (d *double) Answers(_ context.Context, path string) error {
	d.calls = append(d.calls, "ask "+path)
	if d.fail == "ask" {
		return errFails
	}
	return nil
}

// newInstaller returns an installer for a tree with a running system.
func newInstaller(t *testing.T, root string, system System) (*Installer, *[]string) {
	t.Helper()
	var steps []string
	return New(Options{
		Root: root, Source: source(t), System: system, Wait: 50 * time.Millisecond,
		Report: func(step string) { steps = append(steps, step) },
	}), &steps
}
