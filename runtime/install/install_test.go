package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
)

func installer(t *testing.T) Installer {
	t.Helper()
	dir := t.TempDir()
	shim := filepath.Join(dir, "crinet")
	if err := os.WriteFile(shim, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Installer{
		ConfDir: filepath.Join(dir, "etc", "net.d"), BinDir: filepath.Join(dir, "opt", "bin"),
		Shim: shim, Socket: "/run/crinet/cni.sock",
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestInstallWritesOnceAndRemoves(t *testing.T) {
	i := installer(t)
	for n, want := range []bool{true, false} {
		if changed, err := i.Install("1.1.0"); err != nil || changed != want {
			t.Fatalf("Install, call %d = %v, %v; want %v", n+1, changed, err, want)
		}
	}
	list, err := libcni.NetworkConfFromFile(filepath.Join(i.ConfDir, ConfListName))
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.1.0" || list.Plugins[0].Network.Type != PluginName || !list.Plugins[0].Network.Capabilities["portMappings"] {
		t.Errorf("the runtime reads %s", list.Bytes)
	}
	if got, ok := i.Installed(); got != "1.1.0" || !ok {
		t.Errorf("Installed() = %s, %v; want what was installed", got, ok)
	}
	info, err := os.Stat(filepath.Join(i.BinDir, PluginName))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("shim: %v, %v; want mode 0755", info, err)
	}
	if got := append(names(t, i.ConfDir), names(t, i.BinDir)...); len(got) != 2 {
		t.Errorf("files left over: %v", got)
	}
	for n, want := range []bool{true, false} {
		if changed, err := i.Remove(); err != nil || changed != want {
			t.Errorf("Remove, call %d = %v, %v; want %v", n+1, changed, err, want)
		}
	}
	if got := append(names(t, i.ConfDir), names(t, i.BinDir)...); len(got) != 0 {
		t.Errorf("files left after Remove: %v", got)
	}
}

func TestInstallMendsWhatOthersChanged(t *testing.T) {
	i := installer(t)
	if _, err := i.Install("1.0.0"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(i.ConfDir, ConfListName)
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, ok := i.Installed(); ok {
		t.Errorf("Installed() of a broken file = %s", got)
	}
	if changed, err := i.Install("1.0.0"); err != nil || !changed {
		t.Fatalf("Install = %v, %v; want a change", changed, err)
	}
	if _, err := libcni.NetworkConfFromFile(path); err != nil {
		t.Error(err)
	}
}

func TestInstallWithoutShimNamesIt(t *testing.T) {
	i := installer(t)
	i.Shim += "-missing"
	if _, err := i.Install("1.0.0"); err == nil || !strings.Contains(err.Error(), i.Shim) {
		t.Errorf("Install = %v, want an error that names %s", err, i.Shim)
	}
	if _, err := os.Stat(i.ConfDir); !os.IsNotExist(err) {
		t.Errorf("the runtime was pointed at a shim that is not there")
	}
}

func TestInstallIntoUnwritableDir(t *testing.T) {
	i := installer(t)
	i.BinDir = filepath.Join(i.Shim, "below-a-file")
	if _, err := i.Install("1.0.0"); err == nil || !strings.Contains(err.Error(), i.BinDir) {
		t.Errorf("Install = %v, want an error that names %s", err, i.BinDir)
	}
}

func TestCNIVersion(t *testing.T) {
	for _, c := range []struct{ name, version, want string }{
		{"containerd", "v2.4.2", "1.1.0"},
		{"containerd", "2.0.0", "1.1.0"},
		{"containerd", "v2.4.2+unknown", "1.1.0"},
		{"containerd", "v1.7.27", "1.0.0"},
		{"containerd", "1.6.20~ds1", "1.0.0"},
		{"containerd", "", "1.0.0"},
		{"cri-o", "2.0.0", "1.0.0"},
		{"", "", "1.0.0"},
	} {
		if got := CNIVersion(c.name, c.version); got != c.want {
			t.Errorf("CNIVersion(%q, %q) = %s, want %s", c.name, c.version, got, c.want)
		}
	}
}

func TestInstallMendsModesAndLinks(t *testing.T) {
	i := installer(t)
	if _, err := i.Install("1.1.0"); err != nil {
		t.Fatal(err)
	}
	conf, shim := filepath.Join(i.ConfDir, ConfListName), filepath.Join(i.BinDir, PluginName)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Rename(conf, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, conf); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(shim, 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := i.Install("1.1.0"); err != nil || !changed {
		t.Fatalf("Install = %v, %v; want a change", changed, err)
	}
	for path, want := range map[string]os.FileMode{conf: 0o644, shim: 0o755} {
		if info, err := os.Lstat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want a file of mode %s", path, info, err, want)
		}
	}
}

// A failure leaves no half-written file, and says the same each time.
func TestInstallThatFailsLeavesNothing(t *testing.T) {
	i := installer(t)
	in := filepath.Join(i.ConfDir, ConfListName, "in the way") // a folder where the file belongs
	if err := os.MkdirAll(in, 0o755); err != nil {
		t.Fatal(err)
	}
	_, first := i.Install("1.1.0")
	_, second := i.Install("1.1.0")
	if first == nil || !strings.Contains(first.Error(), filepath.Dir(in)) || second == nil || first.Error() != second.Error() {
		t.Errorf("Install = %v, then %v; want one error that names the file", first, second)
	}
	if got := append(names(t, i.ConfDir), names(t, i.BinDir)...); len(got) != 2 {
		t.Errorf("files left over: %v", got)
	}
	if err := os.Remove(in); err != nil {
		t.Fatal(err)
	}
	if changed, err := i.Remove(); err != nil || !changed {
		t.Errorf("Remove = %v, %v", changed, err)
	}
}
