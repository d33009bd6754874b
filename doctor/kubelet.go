package doctor

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/crinet-project/crinet/internal/kubelet"
)

// KubeletConcern is the concern of the kubelet checks.
const KubeletConcern = "kubelet"

// removedFlags are the kubelet's flags of dockershim's time: a kubelet from 1.24 on (or
// 1.27, for the runtime) ends itself when it is given one.
func removedFlags() []string {
	return []string{"--network-plugin", "--network-plugin-mtu", "--cni-bin-dir", "--cni-conf-dir", "--cni-cache-dir", "--container-runtime",
		"--docker", "--docker-endpoint", "--experimental-dockershim-root-directory", "--image-pull-progress-deadline", "--non-masquerade-cidr", "--hairpin-mode"}
}

func kubeletChecks() []Check {
	return []Check{
		{Name: "kubelet-endpoint", Looks: "which CRI socket the kubelet uses (flags, drop-ins, configuration)", Severity: Error, run: kubeletEndpoint,
			Why: "the kubelet's pods start past crinetd: hostPorts are not admitted, and readiness is the runtime's alone"},
		{Name: "kubelet-removed-flags", Looks: "kubelet flags that were removed with dockershim", Severity: Error, run: kubeletFlags,
			Why: "the kubelet ends itself at a flag that it does not know"},
		{Name: "kubelet-runs", Looks: "whether the kubelet runs, where it is a service", Severity: Warning, run: kubeletRuns,
			After: []string{"kubelet-removed-flags"}, Why: "no pod is started, and the node is NotReady"},
	}
}

// kubeletFiles are the files with the kubelet's flags, the one that counts most last.
func (n *Node) kubeletFiles() []string {
	files := kubelet.FlagFiles(n.glob)
	for _, name := range []string{"k3s", "rke2"} {
		files = append(files, n.glob("/etc/rancher/"+name+"/config.yaml")...)
		files = append(files, n.glob("/etc/rancher/"+name+"/config.yaml.d/*.yaml")...)
	}
	return files
}

// setting is a value and the place that has set it.
type setting struct{ value, place string }

// endpoint finds the socket that the kubelet uses. A flag beats a drop-in of the
// configuration, and that the configuration.
func (n *Node) endpoint() (setting, bool) {
	files := n.kubeletFiles()
	var byFlag *setting
	var flags []string
	for _, l := range n.grep(files, func(string) bool { return true }) {
		flags = append(flags, l.Text)
		if m := kubelet.EndpointFlag.FindStringSubmatch(l.Text); m != nil {
			byFlag = &setting{m[3], l.String()}
		}
	}
	if byFlag != nil {
		return *byFlag, true
	}
	config, dropIns := kubelet.Config(flags...)
	configs := []string{config}
	if dropIns != "" {
		configs = append(configs, n.glob(dropIns+"/*.conf")...)
	}
	found := n.grep(configs, func(line string) bool {
		m := kubelet.EndpointKey.FindStringSubmatch(line)
		return m != nil && m[1] != ""
	})
	if len(found) == 0 {
		return setting{"", config}, len(files) > 0 || n.exists(config)
	}
	last := found[len(found)-1]
	return setting{kubelet.EndpointKey.FindStringSubmatch(last.Text)[1], last.String()}, true
}

func kubeletEndpoint(_ context.Context, n *Node) Result {
	found, ok := n.endpoint()
	if !ok {
		return skip("there is no kubelet on this node")
	}
	if !n.installed() {
		return skip("crinet is not installed on this node")
	}
	want := filepath.Join(n.Options.RunDir, "cri.sock")
	path := strings.Replace(strings.TrimPrefix(found.value, "unix://"), "/var/run/", "/run/", 1)
	if filepath.Clean(path) == want {
		return good("the kubelet uses %s (%s)", found.value, found.place)
	}
	mend := fmt.Sprintf("set it to unix://%s in %s, then systemctl restart kubelet", want, found.place)
	return bad(mend, "the kubelet uses %s, not crinetd's unix://%s (%s)", cmp.Or(found.value, "its default"), want, found.place)
}

func kubeletFlags(_ context.Context, n *Node) Result {
	files := n.kubeletFiles()
	if len(files) == 0 {
		return skip("there is no kubelet on this node")
	}
	var found []string
	var places []string
	for _, l := range n.grep(files, func(string) bool { return true }) {
		for _, word := range strings.FieldsFunc(l.Text, func(c rune) bool { return strings.ContainsRune(" \t\"'=", c) }) {
			if slices.Contains(removedFlags(), word) {
				found = append(found, word+" ("+l.String()+")")
				places = append(places, l.File)
			}
		}
	}
	if len(found) == 0 {
		return good("none in %d files with the kubelet's flags", len(files))
	}
	slices.Sort(places)
	return bad("remove it from "+strings.Join(slices.Compact(places), ", ")+"; the flags of the network are crinetd's now ("+flagsFile+"); then systemctl daemon-reload && systemctl restart kubelet",
		"the kubelet is given %s", few(found))
}

func kubeletRuns(ctx context.Context, n *Node) Result {
	unit := n.unit("kubelet.service")
	if unit == "" {
		return skip("the kubelet is no service of systemd here")
	}
	p, err := n.processes(ctx)
	if err != nil {
		return unknown("%v", err)
	}
	if pids := p.named("kubelet"); len(pids) > 0 {
		return good("the kubelet runs as process %d", pids[0])
	}
	return bad("systemctl start kubelet; if it ends again: journalctl -u kubelet -n 50", "the kubelet does not run although %s is there", unit)
}
