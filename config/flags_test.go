package config

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func defaults() *Options {
	return &Options{
		CNIBinDirs:     []string{"/opt/cni/bin"},
		CNIConfDir:     "/etc/cni/net.d",
		CNICacheDir:    "/var/lib/crinet/cni",
		CNITimeout:     time.Minute,
		CNIStatusGrace: time.Minute, NetworkWait: 5 * time.Minute,
		CNIGCInterval: 5 * time.Minute,
		CNIMaxChains:  32, CNIPassing: []string{"11"}, Critical: []string{"kube-system"},
		BuiltinPlugins:           []string{"bridge", "ptp", "host-local", "flannel"},
		Drift:                    "report",
		DriftInterval:            5 * time.Second,
		DriftCheckInterval:       10 * time.Minute,
		ShutdownGrace:            30 * time.Second,
		ContainerRuntimeEndpoint: "unix:///run/containerd/containerd.sock",
		ImageServiceEndpoint:     "unix:///run/containerd/containerd.sock",
		RuntimeCNICacheDir:       "/var/lib/cni",
		RuntimeHandlers:          []string{},
		HostPortProtected:        []string{"kube-ipvs0"},
		RunDir:                   "/run/crinet",
		StateDir:                 "/var/lib/crinet",
		HostPort:                 "manager",
		HairpinMode:              "hairpin-veth",
		HostPortConflict:         "refuse",
		Verbosity:                2,
		LogFormat:                "text",
	}
}

var cmpPrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestParse(t *testing.T) {
	t.Parallel()
	prefixes := func(ss ...string) (ps []netip.Prefix) {
		for _, s := range ss {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	tests := []struct {
		args string
		want func(o *Options)
	}{
		{"", func(*Options) {}},
		{"--network-plugin=noop", func(o *Options) { o.NetworkPlugin = "noop" }},
		{"--network-plugin k8s-pod-network_2.x", func(o *Options) { o.NetworkPlugin = "k8s-pod-network_2.x" }},
		{"--cni-bin-dir /a/,/b/../c,/a --cni-conf-dir /d/", func(o *Options) {
			o.CNIBinDirs, o.CNIConfDir = []string{"/a", "/c"}, "/d"
		}},
		{"--runtime-cni-conf-dir /x --runtime-cni-bin-dir /y --cni-cache-dir /z --run-dir /r --state-dir /s", func(o *Options) {
			o.RuntimeCNIConfDir, o.RuntimeCNIBinDir, o.CNICacheDir, o.RunDir, o.StateDir = "/x", "/y", "/z", "/r", "/s"
		}},
		{"--state-dir /s/./t --runtime-cni-conf-dir= --runtime-cni-bin-dir=", func(o *Options) {
			o.StateDir, o.CNICacheDir = "/s/t", "/s/t/cni"
		}},
		{"--network-plugin-mtu 68", func(o *Options) { o.NetworkPluginMTU = 68 }},
		{"--network-plugin-mtu 65535", func(o *Options) { o.NetworkPluginMTU = 65535 }},
		{"--pod-cidr 10.10.3.7/16", func(o *Options) { o.PodCIDRs = prefixes("10.10.0.0/16") }},
		{"--pod-cidr fd00:10::/64", func(o *Options) { o.PodCIDRs = prefixes("fd00:10::/64") }},
		{"--pod-cidr 10.1.0.0/24,fd00::/64", func(o *Options) { o.PodCIDRs = prefixes("10.1.0.0/24", "fd00::/64") }},
		{"--pod-cidr=fd00::/64,\u00a010.1.0.0/24", func(o *Options) { o.PodCIDRs = prefixes("fd00::/64", "10.1.0.0/24") }},
		{"--container-runtime-endpoint /run/x.sock", func(o *Options) {
			o.ContainerRuntimeEndpoint, o.ImageServiceEndpoint = "unix:///run/x.sock", "unix:///run/x.sock"
		}},
		{"--image-service-endpoint unix:///i//j.sock", func(o *Options) { o.ImageServiceEndpoint = "unix:///i/j.sock" }},
		{"--runtime-handlers kata,,gvisor --hostport-protected-interfaces=", func(o *Options) {
			o.RuntimeHandlers, o.HostPortProtected = []string{"kata", "gvisor"}, []string{}
		}},
		{"--hostport plugin --hostport-conflict warn --hairpin-mode none", func(o *Options) {
			o.HostPort, o.HostPortConflict, o.HairpinMode = "plugin", "warn", "none"
		}},
		{"--network-wait 0", func(o *Options) { o.NetworkWait = 0 }},
		{"--cni-status-grace 0", func(o *Options) { o.CNIStatusGrace = 0 }},
		{"--hostport off --cni-timeout 90s", func(o *Options) { o.HostPort, o.CNITimeout = "off", 90*time.Second }},
		{"--metrics-bind-address [::1]:9300 -v 10 --log-format json", func(o *Options) {
			o.MetricsBindAddress, o.Verbosity, o.LogFormat = "[::1]:9300", 10, "json"
		}},
		{"--cni-passing-errors 11,slow --critical-namespaces=", func(o *Options) { o.CNIPassing, o.Critical = []string{"11", "slow"}, []string{} }},
		{"--drift repair --drift-interval 2s --drift-check-interval 0", func(o *Options) {
			o.Drift, o.DriftInterval, o.DriftCheckInterval = "repair", 2*time.Second, 0
		}},
		{"--builtin-plugins off", func(o *Options) { o.BuiltinPlugins = nil }},
		{"--builtin-plugins bridge,host-local", func(o *Options) { o.BuiltinPlugins = []string{"bridge", "host-local"} }},
		{"--metrics-bind-address :0 --v=0", func(o *Options) { o.MetricsBindAddress, o.Verbosity = ":0", 0 }},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			want := defaults()
			tt.want(want)
			var out bytes.Buffer
			got, err := Parse(split(tt.args), &out)
			if diff := cmp.Diff(want, got, cmpPrefix); err != nil || diff != "" || out.Len() > 0 {
				t.Errorf("error %v, printed %q, options (-want +got):\n%s", err, &out, diff)
			}
		})
	}
}

// split cuts at blanks, but not at no-break spaces.
func split(args string) []string {
	return strings.FieldsFunc(args, func(r rune) bool { return r == ' ' })
}

func TestParseWrong(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 100)
	tests := []struct{ args, flag, value, reason string }{
		{"--nope", "--nope", "", "no such flag"},
		{"--nope=1", "--nope", "", "no such flag"},
		{"-x", "-x", "", "no such flag"},
		{"--=1", "--=1", "", "no such flag"},
		{"--cni-bin-dirs=/x", "--cni-bin-dirs", "", "no such flag"},
		{"run", "", "run", "takes flags only"},
		{"-v 3 -- stray", "", "stray", "takes flags only"},
		{"--state-dir", "--state-dir", "", "needs a value"},
		{"-v", "-v", "", "needs a value"},
		{"--version=maybe", "--version", "maybe", "true or false"},
		{"--network-plugin=-x", "--network-plugin", "-x", "letters, digits"},
		{"--network-plugin=a/b", "--network-plugin", "a/b", "letters, digits"},
		{"--network-plugin=ü", "--network-plugin", "ü", "letters, digits"},
		{"--cni-bin-dir=", "--cni-bin-dir", `""`, "absolute path"},
		{"--cni-bin-dir=/a,,/b", "--cni-bin-dir", `""`, "absolute path"},
		{"--cni-bin-dir=/a,b", "--cni-bin-dir", "b", "absolute path"},
		{"--cni-bin-dir=/a:/b", "--cni-bin-dir", "/a:/b", "without ':'"},
		{"--cni-conf-dir=etc", "--cni-conf-dir", "etc", "absolute path"},
		{"--cni-conf-dir=", "--cni-conf-dir", `""`, "absolute path"},
		{"--cni-cache-dir=", "--cni-cache-dir", `""`, "absolute path"},
		{"--cni-cache-dir=./c", "--cni-cache-dir", "./c", "absolute path"},
		{"--runtime-cni-conf-dir=x", "--runtime-cni-conf-dir", "x", "absolute path"},
		{"--runtime-cni-bin-dir=x", "--runtime-cni-bin-dir", "x", "absolute path"},
		{"--run-dir=run", "--run-dir", "run", "absolute path"},
		{"--run-dir=/" + long, "--run-dir", "/" + long, "at most 96 bytes"},
		{"--state-dir=/a\n", "--state-dir", "/a\n", "absolute path"},
		{"--network-plugin-mtu=67", "--network-plugin-mtu", "67", "0, or 68 to 65535"},
		{"--network-plugin-mtu=65536", "--network-plugin-mtu", "65536", "0, or 68 to 65535"},
		{"--network-plugin-mtu=-1", "--network-plugin-mtu", "-1", "0, or 68 to 65535"},
		{"--network-plugin-mtu=big", "--network-plugin-mtu", "big", "whole number"},
		{"--pod-cidr=10.0.0.1", "--pod-cidr", "10.0.0.1", "is no CIDR"},
		{"--pod-cidr=10.0.0.0/33", "--pod-cidr", "10.0.0.0/33", "is no CIDR"},
		{"--pod-cidr=::ffff:10.0.0.0/112", "--pod-cidr", "::ffff:10.0.0.0/112", "is no CIDR"},
		{"--pod-cidr=10.0.0.0/24,", "--pod-cidr", "10.0.0.0/24,", "is no CIDR"},
		{"--pod-cidr=10.0.0.0/24,10.1.0.0/24", "--pod-cidr", "10.0.0.0/24,10.1.0.0/24", "one of IPv4 and one of IPv6"},
		{"--pod-cidr=fd00::/64,fd01::/64", "--pod-cidr", "fd00::/64,fd01::/64", "one of IPv4 and one of IPv6"},
		{"--pod-cidr=10.0.0.0/24,fd01::/64,10.1.0.0/24", "--pod-cidr", "10.0.0.0/24,fd01::/64,10.1.0.0/24", "one of IPv4 and one of IPv6"},
		{"--cni-timeout=0", "--cni-timeout", "0s", "more than 0s"},
		{"--cni-timeout=-1s", "--cni-timeout", "-1s", "more than 0s"},
		{"--network-wait=-1s", "--network-wait", "-1s", "0s or more"},
		{"--cni-status-grace=-1s", "--cni-status-grace", "-1s", "0s or more"},
		{"--cni-gc-interval=-1s", "--cni-gc-interval", "-1s", "0s or more"},
		{"--cni-failed-adds-not-ready=-1", "--cni-failed-adds-not-ready", "-1", "0 or more"},
		{"--cni-max-chains=-1", "--cni-max-chains", "-1", "0 or more"},
		{"--builtin-plugins=bridge,macvlan", "--builtin-plugins", "bridge,macvlan", "macvlan"},
		{"--builtin-plugins=", "--builtin-plugins", "", "auto, off"},
		{"--shutdown-grace=-1s", "--shutdown-grace", "-1s", "0s or more"},
		{"--cni-timeout=60", "--cni-timeout", "60", "a time such as"},
		{"--container-runtime-endpoint=tcp://127.0.0.1:1", "--container-runtime-endpoint", "tcp://127.0.0.1:1", "unix socket"},
		{"--container-runtime-endpoint=unix://run/x", "--container-runtime-endpoint", "unix://run/x", "unix socket"},
		{"--container-runtime-endpoint=", "--container-runtime-endpoint", "", "unix socket"},
		{"--container-runtime-endpoint=unix:///", "--container-runtime-endpoint", "unix:///", "unix socket"},
		{"--container-runtime-endpoint=/" + long + long, "--container-runtime-endpoint", "/" + long + long, "at most 107 bytes"},
		{"--image-service-endpoint=x.sock", "--image-service-endpoint", "x.sock", "unix socket"},
		{"--hostport=on", "--hostport", "on", "manager, plugin or off"},
		{"--hostport=", "--hostport", "", "manager, plugin or off"},
		{"--hostport-conflict=ignore", "--hostport-conflict", "ignore", "refuse or warn"},
		{"--hairpin-mode=promiscuous-bridge", "--hairpin-mode", "promiscuous-bridge", "hairpin-veth or none"},
		{"--log-format=xml", "--log-format", "xml", "text or json"},
		{"--metrics-bind-address=9300", "--metrics-bind-address", "9300", "host:port"},
		{"--metrics-bind-address=h:65536", "--metrics-bind-address", "h:65536", "host:port"},
		{"--metrics-bind-address=h:http", "--metrics-bind-address", "h:http", "host:port"},
		{"--metrics-bind-address=::1:9300", "--metrics-bind-address", "::1:9300", "host:port"},
		{"--metrics-bind-address=http://h:9", "--metrics-bind-address", "http://h:9", "host:port"},
		{"-v 11", "-v", "11", "0 to 10"},
		{"-v -1", "-v", "-1", "0 to 10"},
		{"--v=x", "-v", "x", "whole number"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			o, err := Parse(split(tt.args), &bytes.Buffer{})
			var ue *UsageError
			if o != nil || !errors.As(err, &ue) {
				t.Fatalf("%+v, %v; want a *UsageError", o, err)
			}
			if ue.Flag != tt.flag || ue.Value != tt.value || !strings.Contains(ue.Reason, tt.reason) {
				t.Errorf("got %+v", ue)
			}
			if msg := err.Error(); !strings.Contains(msg, tt.flag) || !strings.Contains(msg, tt.value) || !strings.Contains(msg, tt.reason) {
				t.Errorf("message %q", msg)
			}
		})
	}
}

func TestParseHelp(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"--help", "-h", "-v 3 --help stray"} {
		var out bytes.Buffer
		if o, err := Parse(split(args), &out); o != nil || !errors.Is(err, ErrHelp) {
			t.Fatalf("%s: %+v, %v", args, o, err)
		}
		const golden = "testdata/help.txt"
		if *update {
			if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), out.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > helpWidth {
				t.Errorf("line of %d columns: %s", n, line)
			}
		}
	}
	if _, err := Parse([]string{"--help"}, fullDisk{}); err == nil || errors.Is(err, ErrHelp) {
		t.Errorf("help that cannot be written: %v", err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestParseVersion(t *testing.T) {
	t.Parallel()
	got, err := Parse(split("--hostport=wrong --version"), &bytes.Buffer{})
	if diff := cmp.Diff(&Options{Version: true}, got, cmpPrefix); err != nil || diff != "" {
		t.Errorf("error %v, options (-want +got):\n%s", err, diff)
	}
}

func TestOptionsNoop(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{"": true, "noop": true, "cni": false, "mynet": false} {
		if got := (&Options{NetworkPlugin: name}).Noop(); got != want {
			t.Errorf("Noop with %q is %t", name, got)
		}
	}
}
