package kubelet

import (
	"slices"
	"testing"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		flags           []string
		config, dropIns string
	}{
		{"no flags", nil, DefaultConfig, ""},
		{"kubeadm's unit", []string{`Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"`}, DefaultConfig, ""},
		{"the last one counts", []string{"--config=/a.yaml --config-dir=/a.d", `KUBELET_EXTRA_ARGS="--config /b.yaml"`}, "/b.yaml", "/a.d"},
		{"a folder is no configuration", []string{"--config-dir=/a.d"}, DefaultConfig, "/a.d"},
	} {
		if config, dropIns := Config(tt.flags...); config != tt.config || dropIns != tt.dropIns {
			t.Errorf("%s: %q, %q; want %q, %q", tt.name, config, dropIns, tt.config, tt.dropIns)
		}
	}
}

// kubeadm's flags count more than those of a unit, and a unit of the operator's more than
// the package's.
func TestFlagFilesAreInOrder(t *testing.T) {
	t.Parallel()
	there := []string{KubeadmFlags, "/usr/lib/systemd/system/kubelet.service", "/etc/systemd/system/kubelet.service.d/*.conf"}
	files := FlagFiles(func(pattern string) []string {
		if slices.Contains(there, pattern) {
			return []string{pattern}
		}
		return nil
	})
	want := []string{there[1], there[2], there[0]}
	if !slices.Equal(files, want) {
		t.Errorf("%q, want %q", files, want)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"--container-runtime-endpoint=unix:///a.sock --v=2":             "unix:///a.sock",
		`KUBELET_KUBEADM_ARGS="--container-runtime-endpoint unix:///a"`: "unix:///a",
		"  - container-runtime-endpoint=unix:///a":                      "unix:///a",
		`--container-runtime-endpoint="unix:///a"`:                      "unix:///a",
		"--pod-infra-container-image=pause":                             "",
	} {
		m := EndpointFlag.FindStringSubmatch(text)
		if got := append(m, "", "", "", "")[3]; got != want {
			t.Errorf("the flag in %s is %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///a # here\nx: y": "unix:///a",
		`containerRuntimeEndpoint: "unix:///a"`:                                        "unix:///a",
		"containerRuntimeEndpoint:\n":                                                  "",
		"#containerRuntimeEndpoint: unix:///a":                                         "",
	} {
		m := EndpointKey.FindStringSubmatch(text)
		if got := append(m, "", "")[1]; got != want {
			t.Errorf("the key in %q is %q, want %q", text, got, want)
		}
	}
}
