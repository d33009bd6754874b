package installer

import (
	"fmt"
	"strconv"
)

const (
	containerdConfig = "/etc/containerd/config.toml"
	defaultRuntime   = "unix:///run/containerd/containerd.sock"
	// embeddedRuntime is the containerd that k3s and RKE2 run.
	embeddedRuntime = "unix:///run/k3s/containerd/containerd.sock"
)

// The headers of the CNI section in the forms of containerd's configuration.
const (
	cniSection2 = `[plugins."io.containerd.grpc.v1.cri".cni]`
	cniSection3 = `[plugins.'io.containerd.cri.v1.runtime'.cni]`
)

// planContainerd gives containerd a CNI conf dir of its own. From form 3 of the
// configuration on (containerd 2.x) it goes into a file of its own where the
// configuration imports such files; before, containerd would forget all other
// settings of the section's plugin.
func (p *planner) planContainerd() error {
	config, err := p.original(containerdConfig)
	if err != nil {
		return err
	}
	if !config.Exists {
		return p.problem("there is no %s: make it with `containerd config default`, or name the runtime's CNI directories in %s", containerdConfig, flagsFile)
	}
	if disabledCRI.Match(config.Text) {
		return p.problem("%s disables CRI (disabled_plugins): the kubelet cannot use this containerd", containerdConfig)
	}
	form := 1
	if m := versionLine.FindSubmatch(config.Text); m != nil {
		form, _ = strconv.Atoi(string(m[1])) // digits
	}
	header, values := cniSection3, [][2]string{{"conf_dir", strconv.Quote(confDir)}, {"use_internal_loopback", "true"}}
	switch {
	case form < 2:
		return p.problem("%s has no version, or 1: containerd migrates it with `containerd config migrate`", containerdConfig)
	case form == 2:
		header, values = cniSection2, values[:1] // containerd 1.x may not know the other
	}
	target, content, mode := containerdConfig, string(config.Text), config.Mode
	if dir := dropInDir(content); form > 2 && dir != "" {
		target, content, mode = dir+"/50-crinet.toml", fmt.Sprintf("# Written by crinetctl install.\nversion = %d\n", form), 0o644
	}
	for _, v := range values {
		if content, err = setTOML(content, header, v[0], v[1]); err != nil {
			return p.problem("%s: %v", target, err)
		}
	}
	p.add(target, file{Exists: true, Text: []byte(content), Mode: mode}, "containerd gets a CNI conf dir of its own")
	p.dirs = append(p.dirs, confDir)
	p.restartRuntime = []string{"containerd.service"}
	return nil
}
