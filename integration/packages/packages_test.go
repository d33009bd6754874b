package packages_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The node that the packages are installed on.
const (
	containerdConfig = "version = 2\n"
	kubeletConfig    = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n"
)

func newKubeadmNode(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.write("/etc/containerd/config.toml", containerdConfig)
	m.write("/var/lib/kubelet/config.yaml", kubeletConfig)
	m.write("/etc/systemd/system/kubelet.service", "[Service]\nExecStart=/usr/bin/kubelet\n")
	return m
}

// TestDeb installs, upgrades, downgrades and purges the package in a fresh Debian. The
// package alone changes nothing; crinetctl's installation outlives an upgrade, and goes
// with the package.
func TestDeb(t *testing.T) {
	t.Parallel()
	m := newKubeadmNode(t)
	m.put(version, "*.deb")
	m.put(later, "*.deb")
	if left := m.crinets(); len(left) != 0 {
		t.Fatalf("there is already: %q", left)
	}
	m.sh("dpkg --install /root/crinet_" + version + "_amd64.deb")
	m.has(version)
	if m.read("/etc/containerd/config.toml") != containerdConfig || m.read("/var/lib/kubelet/config.yaml") != kubeletConfig {
		t.Error("the package alone changed the node's configuration")
	}
	m.sh("crinetctl install")
	installed := m.read("/var/lib/kubelet/config.yaml")
	if !strings.Contains(installed, "unix:///run/crinet/cri.sock") || !strings.Contains(m.read("/etc/containerd/config.toml"), "/etc/crinet/net.d") {
		t.Errorf("install left the kubelet with %s", installed)
	}
	for _, v := range []string{later, version} { // dpkg warns of the second, a downgrade
		m.sh("dpkg --install /root/crinet_" + v + "_amd64.deb")
		m.has(v)
		if m.read("/var/lib/kubelet/config.yaml") != installed {
			t.Errorf("the package of %s changed the kubelet's configuration", v)
		}
		m.sh("crinetctl install")
	}
	m.sh("dpkg --purge crinet")
	if m.read("/etc/containerd/config.toml") != containerdConfig || m.read("/var/lib/kubelet/config.yaml") != kubeletConfig {
		t.Error("the node's configuration is not as it was")
	}
	if left := m.crinets(); len(left) != 0 {
		t.Errorf("purged, there is still: %q", left)
	}
}

// has checks that the programs of a version are there, with what belongs to them.
func (m *machine) has(version string) {
	m.t.Helper()
	for _, program := range []string{"crinetd", "crinetctl"} {
		if out := m.sh(program + " --version"); out != program+" "+version+"\n" {
			m.t.Errorf("%s --version prints %q, want %s", program, out, version)
		}
	}
	for _, file := range []string{
		"/usr/bin/crinet", "/usr/lib/systemd/system/crinetd.service", "/usr/lib/systemd/system/crinetd.socket",
		"/usr/share/man/man8/crinetd.8.gz", "/usr/share/man/man8/crinetctl-install.8.gz", "/usr/share/bash-completion/completions/crinetctl",
		"/usr/share/crinet/prometheus/crinet-alerts.yaml", "/usr/share/crinet/prometheus/crinet-records.yaml",
		"/usr/share/crinet/grafana/crinet-node.json", "/usr/share/crinet/grafana/crinet-fleet.json", "/usr/share/doc/crinet/docs/troubleshooting.md",
		"/usr/share/doc/crinet/copyright", "/usr/share/doc/crinet/licenses/google.golang.org/grpc/LICENSE", "/usr/share/doc/crinet/licenses/go/LICENSE",
	} {
		if _, err := os.Stat(filepath.Join(m.dir, file)); err != nil {
			// dpkg of a minimal image may leave documents out; this one does not.
			m.t.Error(err)
		}
	}
}

// TestUnitsAreGood has systemd itself read the units.
func TestUnitsAreGood(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.put(version, "*.deb")
	m.sh("dpkg --install /root/*.deb")
	const unit = "/usr/lib/systemd/system/crinetd.service"
	// man pages and units of others are not this package's.
	if out := m.sh("systemd-analyze verify --man=no --recursive-errors=no " + unit + " /usr/lib/systemd/system/crinetd.socket"); strings.Contains(out, "crinet") {
		t.Errorf("systemd-analyze verify says:\n%s", out)
	}
	out := m.sh("systemd-analyze security --no-pager --offline=true --threshold=80 " + unit)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	t.Log(lines[len(lines)-1])
}

// TestRPM installs the other package with rpm, without its scripts: they are those of
// the deb.
func TestRPM(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.put(version, "*.rpm")
	m.sh("rpm --install --nodeps --noscripts --ignoreos /root/*.rpm")
	m.has(version)
	scripts := m.sh("rpm --query --scripts crinet")
	for _, want := range []string{"systemctl restart crinetd.service", "crinetctl uninstall"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("the scripts have no %q:\n%s", want, scripts)
		}
	}
	m.sh("rpm --erase --nodeps --noscripts crinet")
	for _, left := range m.crinets() {
		if info, err := os.Stat(filepath.Join(m.dir, left)); err == nil && !info.IsDir() {
			t.Errorf("erased, there is still %s", left)
		}
	}
}

// TestReproducible builds everything once more, in other folders: the bytes are the
// same.
func TestReproducible(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := buildIn(dir, version, "release"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(dist, version))
	if err != nil || len(entries) != 5 {
		t.Fatalf("%v, %v: want a deb, an rpm, an image, an SBOM and checksums", entries, err)
	}
	for _, entry := range entries {
		first, err := os.ReadFile(filepath.Join(dist, version, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		second, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil || string(first) != string(second) {
			t.Errorf("%s is not the same: %d and %d bytes, %v", entry.Name(), len(first), len(second), err)
		}
	}
}
