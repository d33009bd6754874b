package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The plan is printed and nothing is done; a tree that is no node is refused. Package
// installer has the rest.
func TestInstallDryRun(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	var out bytes.Buffer
	if err := run(t.Context(), []string{"install", "--root", root, "--dry-run"}, &out); err == nil || !strings.Contains(err.Error(), "containerd config default") {
		t.Errorf("an empty tree: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/containerd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/containerd/config.toml"), []byte("version = 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"crinetd", "crinet", "crinetctl"} { // beside this test
		path := filepath.Join(filepath.Dir(self), name)
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(t.Context(), []string{"install", "--root", root, "--dry-run"}, &out); err != nil || !strings.Contains(out.String(), "Write /etc/containerd/config.toml") {
		t.Errorf("%v, printed %s", err, out.String())
	}
	if strings.Contains(out.String(), "In the way") {
		t.Errorf("a node without a fault: %s", out.String())
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 1 {
		t.Errorf("the tree has %v, %v", entries, err)
	}
	out.Reset()
	if err := run(t.Context(), []string{"uninstall", "--root", root}, &out); err != nil || out.String() != "crinetctl: nothing is installed\n" {
		t.Errorf("uninstall: %v, printed %s", err, out.String())
	}
	// A fault of the node is part of the plan, and refuses the installation.
	if err := os.MkdirAll(filepath.Join(root, "etc/default"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/default/kubelet"), []byte("KUBELET_EXTRA_ARGS=--network-plugin=cni --container-runtime-endpoint=unix:///run/containerd/containerd.sock\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, want, refused string }{
		{"--dry-run", "In the way: kubelet-removed-flags", ""},
		{"--wait=0s", "look at the node", "nothing was changed: kubelet-removed-flags"},
		{"--force", "installed all the same: kubelet-removed-flags", ""},
	} {
		out.Reset()
		err := run(t.Context(), []string{"install", "--root", root, c.flag}, &out)
		if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) || !strings.Contains(out.String(), c.want) {
			t.Errorf("install %s on a node with a fault: %v, printed %s", c.flag, err, out.String())
		}
		_, err = os.Stat(filepath.Join(root, "etc/default/crinetd"))
		if installed := err == nil; installed != (c.flag == "--force") {
			t.Errorf("install %s: crinetd's flags are there: %t", c.flag, installed)
		}
	}
}

// A node whose pods would fail is not changed, unless that is forced; the doctor's
// mend is named.
func TestInstallExaminesTheNode(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	const flags = "/etc/default/kubelet"
	for name, text := range map[string]string{
		"/etc/containerd/config.toml": "version = 2\n", "/var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\n",
		flags: "KUBELET_EXTRA_ARGS=--network-plugin=cni\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := examineBefore(t.Context(), root)
	if err == nil || !strings.Contains(err.Error(), "kubelet-removed-flags") || !strings.Contains(err.Error(), "remove it from "+flags) {
		t.Errorf("a kubelet with a flag that it does not know: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, flags), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := examineBefore(t.Context(), root); err != nil {
		t.Errorf("a node without a fault: %v", err)
	}
}
