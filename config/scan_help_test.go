package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/crinet-project/crinet/probe"
)

// addPlugin installs a shell script that answers VERSION with the versions.
func addPlugin(t testing.TB, binDir, name string, versions ...string) {
	t.Helper()
	answer := fmt.Sprintf(`{"cniVersion":"1.0.0","supportedVersions":["%s"]}`, strings.Join(versions, `","`))
	replace(t, filepath.Join(binDir, name), "#!/bin/sh\necho '"+answer+"'\n", 0o755)
}

// replace writes a file beside path and renames it.
func replace(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	syscall.ForkLock.RLock() // or a fork could hold the file open for writing
	defer syscall.ForkLock.RUnlock()
	tmp := filepath.Join(filepath.Dir(path), ".new")
	if err := os.WriteFile(tmp, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// standard is a bin dir with plugins of several ages, probed.
func standard(t testing.TB) (*probe.Plugins, string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"bridge", "host-local", "portmap", "bandwidth", "loopback", "dhcp"} {
		addPlugin(t, dir, name, "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
	}
	addPlugin(t, dir, "old", "0.3.1", "0.4.0", "1.0.0")
	addPlugin(t, dir, "crinet", "1.1.0")
	replace(t, dir+"/garbage", "#!/bin/sh\necho hello\n", 0o755)
	replace(t, dir+"/plain", "text", 0o644)
	replace(t, dir+"/unasked", "#!/bin/sh\nexit 1\n", 0o755)
	p := probe.New([]string{dir}, probe.Config{})
	defer p.Stop()
	plugins, err := p.Probe(t.Context(), []string{"bridge", "host-local", "portmap", "bandwidth", "loopback", "dhcp", "old", "crinet", "garbage", "plain"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return plugins, dir
}

// dump writes a snapshot for people. conf and bin stand for the directories.
func dump(s *Snapshot, binDir string) string {
	var b strings.Builder
	if s.DirReason != "" {
		fmt.Fprintf(&b, "dir: %s\n", s.DirReason)
	}
	for _, n := range s.Networks {
		fmt.Fprintf(&b, "%s: %s %s", filepath.Base(n.File), n.Name, n.CNIVersion)
		for _, p := range n.Plugins {
			fmt.Fprintf(&b, " %s", p.Type)
			if p.IPAM != "" {
				fmt.Fprintf(&b, "+%s", p.IPAM)
			}
			if len(p.Capabilities) > 0 {
				fmt.Fprintf(&b, "(%s)", strings.Join(p.Capabilities, ","))
			}
		}
		if len(n.Capabilities) > 0 {
			fmt.Fprintf(&b, " can %s", strings.Join(n.Capabilities, ","))
		}
		if n.NeedsPodCIDR {
			b.WriteString(" NEEDS-CIDR")
		}
		if n.Stale != "" {
			b.WriteString(" STALE")
		}
		b.WriteString("\n")
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "%s[%s] %s\n", p.Kind, p.Network, p)
	}
	out := strings.ReplaceAll(b.String(), s.Dir, "conf")
	return strings.ReplaceAll(out, binDir, "bin")
}

const seedBridge = `{"cniVersion":"0.3.0","name":"mynet","type":"bridge","bridge":"mynet0","isDefaultGateway":true,"forceAddress":false,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","subnet":"10.10.0.0/16"}}`

const flannelList = `{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "bridge", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`

func one(name, cniVersion, plugin string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, cniVersion, name, plugin)
}

func list1(name string) string { return one(name, "1.0.0", `{"type":"bridge"}`) }

// checkNetwork holds a network against what libcni makes of its list.
func checkNetwork(t testing.TB, n *Network) {
	t.Helper()
	list, err := libcni.NetworkConfFromBytes(n.ConfList)
	if err != nil {
		t.Fatalf("libcni: %v\n%s", err, n.ConfList)
	}
	if list.Name != n.Name || list.CNIVersion != n.CNIVersion || !list.LoadOnlyInlinedPlugins || len(list.Plugins) != len(n.Plugins) {
		t.Fatalf("libcni reads %+v\nfrom %s", list, n.ConfList)
	}
	for i, p := range list.Plugins {
		if p.Network.Type != n.Plugins[i].Type || p.Network.IPAM.Type != n.Plugins[i].IPAM {
			t.Errorf("plugin %d: libcni reads %+v, we %+v", i, p.Network, n.Plugins[i])
		}
	}
}
