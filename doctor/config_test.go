package doctor

import (
	"encoding/binary"
	"strings"
	"testing"
)

// foreign is the head of a program for another machine than those that tests run on.
func foreign() string {
	head := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	binary.LittleEndian.PutUint16(head[16:], 2)  // an executable
	binary.LittleEndian.PutUint16(head[18:], 8)  // of MIPS
	binary.LittleEndian.PutUint32(head[20:], 1)  // version
	binary.LittleEndian.PutUint16(head[52:], 64) // this head's size
	binary.LittleEndian.PutUint16(head[54:], 56) // of a program header
	binary.LittleEndian.PutUint16(head[58:], 64) // of a section header
	return string(head)
}

func TestConfigChecks(t *testing.T) {
	t.Parallel()
	bins := []string{"/opt/cni/bin/bridge", "#!x", "/opt/cni/bin/host-local", "#!x"}
	const flannel = `{"cniVersion":"1.0.0","name":"cbr0","plugins":[{"type":"flannel","delegate":{"isDefaultGateway":true}},{"type":"portmap","capabilities":{"portMappings":true}}]}`
	fl := func(more ...string) map[string]string {
		files := map[string]string{"/etc/cni/net.d/10-flannel.conflist": flannel}
		for i := 0; i < len(more); i += 2 {
			files[more[i]] = more[i+1]
		}
		return files
	}
	ranged := map[string]string{"/etc/default/crinetd": "", "/etc/cni/net.d/a.conflist": `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","capabilities":{"ipRanges":true},"ipam":{"type":"host-local"}}]}`}
	other := strings.ReplaceAll(mynet, "mynet", "other")
	run(t, []tc{
		{name: "good", check: "conf-dir", files: conf(), image: true,
			want: OK, found: "1 network"},
		{name: "missing", check: "conf-dir", image: true,
			want: Outcome(Error), found: "does not exist", mend: "mkdir -p /etc/cni/net.d"},
		{name: "empty", check: "conf-dir", files: map[string]string{"/etc/cni/net.d/README": ""}, image: true,
			want: Outcome(Error), found: "holds no network", mend: ".conflist"},
		{name: "a file", check: "conf-dir", files: map[string]string{"/etc/cni/net.d": ""}, image: true,
			want: Outcome(Error), found: "cannot be read", mend: "ls -ld"},
		{name: "noop", check: "conf-dir", flags: []string{"--network-plugin="}, image: true,
			want: Skipped, found: "noop"},
		{name: "good", check: "conf-files", files: conf(), image: true,
			want: OK},
		{name: "one broken", check: "conf-files", files: conf("/etc/cni/net.d/05-b.conf", "{\n}}"), image: true,
			want: Outcome(Warning), found: "/etc/cni/net.d/05-b.conf:2", mend: "crinetctl validate /etc/cni/net.d/05-b.conf"},
		{name: "all broken", check: "conf-files", files: map[string]string{"/etc/cni/net.d/05-b.conf": "{"}, image: true,
			want: Outcome(Error), found: "/etc/cni/net.d/05-b.conf:1"},
		{name: "one", check: "conf-choice", files: conf(), image: true,
			want: OK},
		{name: "several", check: "conf-choice", files: conf("/etc/cni/net.d/20-o.conflist", other), image: true,
			want: Outcome(Info), found: "the first of 2", mend: "--network-plugin=mynet"},
		{name: "named", check: "conf-choice", files: conf("/etc/cni/net.d/20-o.conflist", other), flags: []string{"--network-plugin=other"}, image: true,
			want: OK},
		{name: "by name", check: "network-plugin", files: conf("/etc/cni/net.d/20-o.conflist", other), flags: []string{"--network-plugin=other"}, image: true,
			want: OK, found: "network other"},
		{name: "by type", check: "network-plugin", files: conf(), flags: []string{"--network-plugin=bridge"}, image: true,
			want: OK, found: "network mynet"},
		{name: "none", check: "network-plugin", files: conf(), flags: []string{"--network-plugin=calico"}, image: true,
			want: Outcome(Error), found: "calico names no network", mend: "crinetd's defaults"},
		{name: "good", check: "plugin-binaries", files: conf(bins...), image: true,
			want: OK, found: "bridge, host-local"},
		{name: "no ipam", check: "plugin-binaries", files: conf(bins[:2]...), image: true,
			want: Outcome(Error), found: "plugin host-local is not in /opt/cni/bin", mend: "install it into /opt/cni/bin"},
		{name: "second dir", check: "plugin-binaries", files: conf("/a/bridge", "#!x", "/b/host-local", "#!x"), flags: []string{"--cni-bin-dir=/a,/b"}, image: true,
			want: OK},
		{name: "not executable", check: "plugin-binaries", files: conf("/opt/cni/bin/bridge", "600", "/opt/cni/bin/host-local", "#!x"), image: true,
			want: Outcome(Error), found: "/opt/cni/bin/bridge is not executable", mend: "chmod 755"},
		{name: "another machine", check: "plugin-binaries", files: conf("/opt/cni/bin/bridge", foreign(), "/opt/cni/bin/host-local", "#!x"), image: true,
			want: Outcome(Error), found: "is built for EM_MIPS", mend: "install a build for"},
		{name: "own addresses", check: "pod-cidr", files: conf(), want: Skipped},
		{name: "by crinetd", check: "pod-cidr", files: ranged, crinetd: &Crinetd{PodCIDRs: []string{"10.1.0.0/24"}}, want: OK, found: "10.1.0.0/24"},
		{name: "by flag", check: "pod-cidr", files: ranged, flags: []string{"--pod-cidr=10.2.0.0/24"}, want: OK, found: "10.2.0.0/24"},
		{name: "by nobody", check: "pod-cidr", files: ranged, crinetd: &Crinetd{}, want: Outcome(Error), found: "network a (/etc/cni/net.d/a.conflist)", mend: "--allocate-node-cidrs"},
		{name: "not flannel", check: "flannel-subnet", files: conf(), image: true,
			want: Skipped},
		{name: "good", check: "flannel-subnet", files: fl("/run/flannel/subnet.env", "FLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1450\n"), image: true,
			want: OK},
		{name: "no file", check: "flannel-subnet", files: fl(), image: true,
			want: Outcome(Error), found: "/run/flannel/subnet.env", mend: "flanneld"},
		{name: "no subnet", check: "flannel-subnet", files: fl("/run/flannel/subnet.env", "FLANNEL_MTU=1450\n"), image: true,
			want: Outcome(Error), found: "no FLANNEL_SUBNET", mend: "restart flanneld"},
	})
}

// crinetd's flags are found where somebody has set them.
func TestFindOptions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files      map[string]string
		more       []string
		from, want string // --cni-conf-dir
	}{
		"defaults": {nil, nil, "crinetd's defaults", "/etc/cni/net.d"},
		"file":     {map[string]string{"/etc/default/crinetd": "# x\nCRINETD_FLAGS=\"--network-plugin=a --cni-conf-dir=/a\"\n"}, nil, "/etc/default/crinetd:2", "/a"},
		"unit":     {map[string]string{"/usr/lib/systemd/system/crinetd.service": "Environment=CRINETD_FLAGS=--cni-conf-dir=/b\n"}, nil, "/usr/lib/systemd/system/crinetd.service:1", "/b"},
		"process":  {map[string]string{"/proc/5/comm": "crinetd\n", "/proc/5/cmdline": "/x/crinetd\x00--cni-conf-dir=/c\x00"}, nil, "crinetd, process 5", "/c"},
		"given":    {map[string]string{"/etc/default/crinetd": "CRINETD_FLAGS=--cni-conf-dir=/a\n"}, []string{"--cni-conf-dir=/d"}, "/etc/default/crinetd:1", "/d"},
		"nonsense": {map[string]string{"/etc/default/crinetd": "CRINETD_FLAGS=--nonsense\n"}, nil, "no such flag", "/etc/cni/net.d"},
	} {
		n := &Node{Root: writeTree(t, c.files), Live: true}
		if err := n.FindOptions(c.more); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !strings.Contains(n.OptionsFrom, c.from) || n.Options.CNIConfDir != c.want {
			t.Errorf("%s: %s from %s, want %s from %s", name, n.Options.CNIConfDir, n.OptionsFrom, c.want, c.from)
		}
	}
	if err := new(Node).FindOptions([]string{"--nonsense"}); err == nil {
		t.Error("a flag that does not exist is no error")
	}
}
