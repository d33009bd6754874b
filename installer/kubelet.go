package installer

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/crinet-project/crinet/internal/kubelet"
)

// planKubelet points the kubelet at crinetd. A flag beats the configuration file, and
// a file of the drop-in folder beats that.
func (p *planner) planKubelet() error {
	files, byFlag := kubelet.FlagFiles(p.root.glob), false
	var flags []string
	for _, name := range files {
		f, err := p.original(name)
		if err != nil {
			return err
		}
		flags = append(flags, string(f.Text))
		if m := kubelet.EndpointFlag.FindSubmatch(f.Text); m != nil {
			byFlag = true
			if err := p.upstream(string(m[3]), name); err != nil {
				return err
			}
			f.Text = kubelet.EndpointFlag.ReplaceAll(f.Text, []byte("${1}${2}"+criEndpoint))
			p.add(name, f, "the kubelet's flag names crinetd")
		}
	}
	configName, dropIns := kubelet.Config(flags...)
	config, err := p.original(configName)
	if err != nil {
		return err
	}
	if len(files) == 0 && !config.Exists {
		p.note("there is no kubelet: point whoever speaks CRI at %s", criEndpoint)
		return nil
	}
	p.restartKubelet = []string{"kubelet.service"}
	if byFlag {
		return nil
	}
	if m := kubelet.EndpointKey.FindSubmatch(config.Text); m != nil && len(m[1]) > 0 {
		if err := p.upstream(string(m[1]), configName); err != nil {
			return err
		}
	}
	if dropIns != "" {
		return p.kubeletDropIn(dropIns)
	}
	if !config.Exists {
		return p.problem("the kubelet has no configuration file at %s and no flag --container-runtime-endpoint: set the flag to %s", configName, criEndpoint)
	}
	p.add(configName, setEndpoint(config), "the kubelet's configuration names crinetd")
	return nil
}

// kubeletDropIn writes a file that comes after those that are there.
func (p *planner) kubeletDropIn(dir string) error {
	for _, name := range p.root.glob(dir + "/*.conf") {
		f, err := p.original(name)
		if err != nil {
			return err
		}
		if m := kubelet.EndpointKey.FindSubmatch(f.Text); m != nil && len(m[1]) > 0 && f.Exists {
			if err := p.upstream(string(m[1]), name); err != nil {
				return err
			}
		}
	}
	p.add(dir+"/90-crinet.conf", text("# Written by crinetctl install.\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncontainerRuntimeEndpoint: "+criEndpoint+"\n"),
		"the kubelet's drop-in names crinetd")
	return nil
}

// setEndpoint sets the endpoint in a kubelet's configuration file.
func setEndpoint(config file) file {
	line := []byte("containerRuntimeEndpoint: " + criEndpoint)
	if kubelet.EndpointKey.Match(config.Text) {
		config.Text = kubelet.EndpointKey.ReplaceAllLiteral(config.Text, line)
		return config
	}
	changed := bytes.Clone(config.Text)
	if len(changed) > 0 && !bytes.HasSuffix(changed, []byte("\n")) {
		changed = append(changed, '\n')
	}
	config.Text = append(append(changed, line...), '\n')
	return config
}

// planEmbedded points the kubelet inside k3s or RKE2 at crinetd. Their option
// container-runtime-endpoint would end the containerd that they run; the kubelet's own
// flag of that name does not.
func (p *planner) planEmbedded(name string) error {
	dir := "/etc/rancher/" + name
	config, err := p.original(dir + "/config.yaml")
	if err != nil {
		return err
	}
	if regexp.MustCompile(`(?m)^\s*container-runtime-endpoint\s*:`).Match(config.Text) {
		return p.problem("%s/config.yaml names a container-runtime-endpoint of its own: install for that containerd by hand", dir)
	}
	p.add(dir+"/config.yaml.d/90-crinet.yaml", text("# Written by crinetctl install.\nkubelet-arg+:\n  - container-runtime-endpoint="+criEndpoint+"\n"),
		fmt.Sprintf("the kubelet inside %s gets crinetd as its runtime", name))
	p.Endpoint = embeddedRuntime
	p.note("containerd's configuration is %s's: crinetd shares its CNI conf dir", name)
	p.restartKubelet = append(p.restartKubelet, p.embeddedUnits(name)...)
	return nil
}

// embeddedUnits are the services of k3s or RKE2 that the node has.
func (p *planner) embeddedUnits(name string) []string {
	units := map[string][]string{"k3s": {"k3s.service", "k3s-agent.service"}, "rke2": {"rke2-server.service", "rke2-agent.service"}}[name]
	return slices.DeleteFunc(units, func(unit string) bool {
		return !slices.ContainsFunc([]string{"/etc/systemd/system/", "/usr/lib/systemd/system/", "/usr/local/lib/systemd/system/", "/lib/systemd/system/"},
			func(dir string) bool { return p.root.exists(dir + unit) })
	})
}

// upstream notes which runtime the kubelet used before.
func (p *planner) upstream(endpoint, where string) error {
	switch {
	case endpoint == criEndpoint:
		return nil // somebody did by hand what install does
	case strings.Contains(endpoint, "crio"):
		return p.problem("%s names CRI-O (%s): crinetctl installs for containerd only", where, endpoint)
	case !strings.HasPrefix(endpoint, "unix://") && !strings.HasPrefix(endpoint, "/"):
		return p.problem("%s: container runtime endpoint %s is no unix socket", where, endpoint)
	}
	if path := strings.TrimPrefix(endpoint, "unix://"); strings.HasPrefix(path, "/var/run/") {
		endpoint = "unix://" + strings.TrimPrefix(path, "/var")
	}
	p.Endpoint = endpoint
	return nil
}
