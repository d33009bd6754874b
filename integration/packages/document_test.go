package packages_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// section is a section of docs/install.md with the commands that it shows.
type section struct {
	title    string
	commands []string
}

func sections(t *testing.T) []section {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/install.md"))
	if err != nil {
		t.Fatal(err)
	}
	var all []section
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if title, ok := strings.CutPrefix(line, "## "); ok {
			all = append(all, section{title: title})
		}
		if command, ok := strings.CutPrefix(line, "    "); ok {
			all[len(all)-1].commands = append(all[len(all)-1].commands, command)
		}
	}
	return all
}

// TestInstallDocument runs every command that docs/install.md shows, as it stands
// there, on a node of the kind that the section is about.
func TestInstallDocument(t *testing.T) {
	t.Parallel()
	kubeadm := newKubeadmNode(t)
	k3s := newMachine(t)
	k3s.write("/etc/systemd/system/k3s.service", "[Service]\nExecStart=/usr/local/bin/k3s server\n")
	plain := newMachine(t)
	plain.write("/etc/containerd/config.toml", containerdConfig)
	bare := newKubeadmNode(t)
	nodes := map[string]*machine{
		"A node of kubeadm, or another with a kubelet": kubeadm,
		"k3s and RKE2":          k3s,
		"containerd alone":      plain,
		"Without a package":     bare,
		"Upgrade and downgrade": kubeadm,
		"Uninstall":             kubeadm,
	}
	for _, m := range []*machine{kubeadm, k3s, plain, bare} {
		m.put(version, "*.deb")
		m.put(later, "*.deb")
		// apt asks nobody here, and has only what is in the folder.
		m.write("/etc/apt/apt.conf.d/99test", "APT::Get::Assume-Yes \"true\";\nAPT::Sandbox::User \"root\";\n")
	}
	bare.sh("dpkg --extract /root/crinet_" + version + "_amd64.deb /tmp/x && cp --recursive /tmp/x/usr/bin /root/bin && rm --recursive /tmp/x")
	run := 0
	for _, s := range sections(t) {
		m := nodes[s.title]
		if m == nil && len(s.commands) > 0 {
			t.Errorf("no node for the section %q", s.title)
			continue
		}
		for _, command := range s.commands {
			command = strings.NewReplacer("VERSION", version, "LATER", later).Replace(command)
			if out, err := m.try("cd /root && " + command); err != nil {
				t.Errorf("%s: %s: %v\n%s", s.title, command, err, out)
			}
			run++
		}
		m.check(s.title)
	}
	if run < 10 {
		t.Errorf("only %d commands were found", run)
	}
}

// check looks for what a section promises.
func (m *machine) check(title string) {
	if m == nil {
		return
	}
	m.t.Helper()
	switch title {
	case "k3s and RKE2":
		if text := m.read("/etc/rancher/k3s/config.yaml.d/90-crinet.yaml"); !strings.Contains(text, "container-runtime-endpoint=unix:///run/crinet/cri.sock") {
			m.t.Errorf("%s: %s", title, text)
		}
	case "Without a package":
		m.sh("test -x /usr/local/bin/crinetd && grep --quiet ExecStart=/usr/local/bin/crinetd /etc/systemd/system/crinetd.service")
	case "Uninstall":
		if left := m.crinets(); len(left) != 0 {
			m.t.Errorf("uninstalled and purged, there is still: %q", left)
		}
		if text := m.read("/var/lib/kubelet/config.yaml"); text != kubeletConfig {
			m.t.Errorf("the kubelet's configuration is %s", text)
		}
	}
}
