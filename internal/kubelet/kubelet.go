// Package kubelet knows where a kubelet's settings are: the files that its flags come
// from, its configuration and the drop-ins of that. A flag beats a drop-in, and that the
// configuration (Kubernetes, "Kubelet Configuration Directory Merging").
package kubelet

import (
	"regexp"
	"slices"
)

const (
	// KubeadmFlags is where kubeadm keeps the kubelet's flags.
	KubeadmFlags = "/var/lib/kubelet/kubeadm-flags.env"
	// DefaultConfig is the configuration that kubeadm names.
	DefaultConfig = "/var/lib/kubelet/config.yaml"
)

var (
	// EndpointFlag finds the CRI socket in flags: what is before its value, a quotation
	// mark or nothing, the value. Inside k3s and RKE2 the flag has no dashes.
	EndpointFlag = regexp.MustCompile(`(container-runtime-endpoint[= ])("?)([^\s"']+)`)
	// EndpointKey finds the line of the CRI socket in a configuration, and its value.
	EndpointKey = regexp.MustCompile(`(?m)^containerRuntimeEndpoint:[ \t]*["']?([^\s"'#]*)["']?.*$`)

	configFlag = regexp.MustCompile(`--config[= ]"?([^\s"']+)`)
	dropInFlag = regexp.MustCompile(`--config-dir[= ]"?([^\s"']+)`)
)

// UnitDirs are the folders of systemd's units, the one that counts most first
// (systemd.unit(5), "Unit File Load Path").
func UnitDirs() []string {
	return []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// FlagFiles returns the files that a kubelet may get flags from, the one that counts most
// last: units, those of the packages, kubeadm's. glob expands a pattern to the files that
// are there.
func FlagFiles(glob func(pattern string) []string) (files []string) {
	for _, dir := range slices.Backward(UnitDirs()) {
		files = append(files, glob(dir+"/kubelet.service")...)
		files = append(files, glob(dir+"/kubelet.service.d/*.conf")...)
	}
	for _, name := range []string{"/etc/default/kubelet", "/etc/sysconfig/kubelet", KubeadmFlags} {
		files = append(files, glob(name)...)
	}
	return files
}

// Config returns the configuration, and the folder of its drop-ins or nothing, that the
// texts of all files of flags name.
func Config(flags ...string) (config, dropIns string) {
	config = DefaultConfig
	for _, text := range flags {
		if m := configFlag.FindStringSubmatch(text); m != nil {
			config = m[1]
		}
		if m := dropInFlag.FindStringSubmatch(text); m != nil {
			dropIns = m[1]
		}
	}
	return config, dropIns
}
