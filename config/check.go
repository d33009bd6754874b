package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/crinet-project/crinet/cni/builtin"
)

const (
	// maxSocketPath is what fits into sockaddr_un besides the closing zero
	// (unix(7)), in bytes.
	maxSocketPath = 107
	// longestSocket is the longest name of the sockets in --run-dir.
	longestSocket = "/admin.sock"
	// minMTU is the least that IPv4 allows (RFC 791), maxMTU the largest size of
	// a packet.
	minMTU, maxMTU = 68, 65535
	maxVerbosity   = 10
)

// check validates every value and fills in the defaults that depend on others.
func (r *raw) check() error {
	steps := []func() error{r.checkPlugin, r.checkNumbers, r.checkPodCIDR, r.checkDirs, r.checkEndpoints, r.checkChoices, r.checkBuiltin, r.checkMetrics}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (r *raw) checkPlugin() error {
	// The names that CNI allows for networks (libcni, ValidateNetworkName).
	if ok, _ := regexp.MatchString(`^([a-zA-Z0-9][a-zA-Z0-9_.\-]*)?$`, r.NetworkPlugin); !ok {
		return &UsageError{"--network-plugin", r.NetworkPlugin, "want noop, cni, or the name of a network or plugin: letters, digits, '_', '.' and '-', beginning with a letter or digit"}
	}
	return nil
}

func (r *raw) checkNumbers() error {
	switch {
	case r.NetworkPluginMTU != 0 && (r.NetworkPluginMTU < minMTU || r.NetworkPluginMTU > maxMTU):
		return &UsageError{"--network-plugin-mtu", strconv.Itoa(r.NetworkPluginMTU), fmt.Sprintf("want 0, or %d to %d", minMTU, maxMTU)}
	case r.CNITimeout <= 0:
		return &UsageError{"--cni-timeout", r.CNITimeout.String(), "want more than 0s"}
	case r.CNIStatusGrace < 0:
		return &UsageError{"--cni-status-grace", r.CNIStatusGrace.String(), "want 0s or more"}
	case r.NetworkWait < 0:
		return &UsageError{"--network-wait", r.NetworkWait.String(), "want 0s or more"}
	case r.CNIGCInterval < 0:
		return &UsageError{"--cni-gc-interval", r.CNIGCInterval.String(), "want 0s or more"}
	case r.DriftInterval < 0 || r.DriftInterval > 0 && r.DriftInterval < 100*time.Millisecond:
		return &UsageError{"--drift-interval", r.DriftInterval.String(), "want 0s, or 100ms or more"}
	case r.DriftCheckInterval < 0:
		return &UsageError{"--drift-check-interval", r.DriftCheckInterval.String(), "want 0s or more"}
	case r.CNIFailedAdds < 0:
		return &UsageError{"--cni-failed-adds-not-ready", strconv.Itoa(r.CNIFailedAdds), "want 0 or more"}
	case r.CNIMaxChains < 0:
		return &UsageError{"--cni-max-chains", strconv.Itoa(r.CNIMaxChains), "want 0 or more"}
	case r.ShutdownGrace < 0:
		return &UsageError{"--shutdown-grace", r.ShutdownGrace.String(), "want 0s or more"}
	case r.Verbosity < 0 || r.Verbosity > maxVerbosity:
		return &UsageError{"-v", strconv.Itoa(r.Verbosity), fmt.Sprintf("want 0 to %d", maxVerbosity)}
	}
	return nil
}

func (r *raw) checkPodCIDR() error {
	if r.podCIDR == "" {
		return nil
	}
	for part := range strings.SplitSeq(r.podCIDR, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(part))
		if err != nil || prefix.Addr().Is4In6() {
			return &UsageError{"--pod-cidr", r.podCIDR, fmt.Sprintf("%q is no CIDR; want one such as 10.10.0.0/24 or fd00:10::/64", part)}
		}
		r.PodCIDRs = append(r.PodCIDRs, prefix.Masked())
	}
	if len(r.PodCIDRs) > 2 || (len(r.PodCIDRs) == 2 && r.PodCIDRs[0].Addr().Is4() == r.PodCIDRs[1].Addr().Is4()) {
		return &UsageError{"--pod-cidr", r.podCIDR, "want one CIDR, or one of IPv4 and one of IPv6"}
	}
	return nil
}

func (r *raw) checkDirs() error {
	for dir := range strings.SplitSeq(r.binDirs, ",") {
		if err := checkDir("--cni-bin-dir", &dir); err != nil {
			return err
		}
		if strings.Contains(dir, ":") { // the separator of CNI_PATH
			return &UsageError{"--cni-bin-dir", dir, "want directories without ':', which separates them for the plugins"}
		}
		if !slices.Contains(r.CNIBinDirs, dir) {
			r.CNIBinDirs = append(r.CNIBinDirs, dir)
		}
	}
	dirs := []struct {
		flag string
		dir  *string
	}{
		{"--state-dir", &r.StateDir}, {"--run-dir", &r.RunDir},
		{"--cni-conf-dir", &r.CNIConfDir}, {"--cni-cache-dir", &r.CNICacheDir},
		{"--runtime-cni-conf-dir", &r.RuntimeCNIConfDir}, {"--runtime-cni-bin-dir", &r.RuntimeCNIBinDir},
		{"--runtime-cni-cache-dir", &r.RuntimeCNICacheDir},
	}
	for _, d := range dirs {
		switch {
		case d.dir == &r.CNICacheDir && *d.dir == defaultCacheDir:
			*d.dir = filepath.Join(r.StateDir, "cni")
		case (d.dir == &r.RuntimeCNIConfDir || d.dir == &r.RuntimeCNIBinDir) && *d.dir == "":
			continue // asked from the runtime
		}
		if err := checkDir(d.flag, d.dir); err != nil {
			return err
		}
	}
	if most := maxSocketPath - len(longestSocket); len(r.RunDir) > most {
		return &UsageError{"--run-dir", r.RunDir, fmt.Sprintf("want at most %d bytes, or the paths of its sockets are too long", most)}
	}
	return nil
}

// checkDir cleans a directory, which must be absolute.
func checkDir(flag string, dir *string) error {
	if !filepath.IsAbs(*dir) || strings.ContainsFunc(*dir, unicode.IsControl) {
		value := *dir
		if value == "" {
			value = `""`
		}
		return &UsageError{flag, value, "want an absolute path such as /opt/cni/bin"}
	}
	*dir = filepath.Clean(*dir)
	return nil
}

// names splits a list at its commas. It is not nil.
func names(list string) []string {
	all := []string{}
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			all = append(all, name)
		}
	}
	return all
}

func (r *raw) checkEndpoints() error {
	r.RuntimeHandlers, r.HostPortProtected = names(r.handlers), names(r.protected)
	r.CNIPassing, r.Critical = names(r.passing), names(r.critical)
	if r.ImageServiceEndpoint == "" {
		r.ImageServiceEndpoint = r.ContainerRuntimeEndpoint
	}
	for _, e := range []struct {
		flag  string
		value *string
	}{
		{"--container-runtime-endpoint", &r.ContainerRuntimeEndpoint},
		{"--image-service-endpoint", &r.ImageServiceEndpoint},
	} {
		path := strings.TrimPrefix(*e.value, "unix://")
		if !filepath.IsAbs(path) || filepath.Clean(path) == "/" || strings.ContainsFunc(path, unicode.IsControl) {
			return &UsageError{e.flag, *e.value, "want a unix socket such as unix:///run/containerd/containerd.sock"}
		}
		if path = filepath.Clean(path); len(path) > maxSocketPath {
			return &UsageError{e.flag, *e.value, fmt.Sprintf("want a socket whose path has at most %d bytes", maxSocketPath)}
		}
		*e.value = "unix://" + path
	}
	return nil
}

func (r *raw) checkChoices() error {
	for _, c := range []struct {
		flag, value string
		allowed     []string
	}{
		{"--hostport", r.HostPort, []string{HostPortManager, HostPortPlugin, HostPortOff}},
		{"--hostport-conflict", r.HostPortConflict, []string{ConflictRefuse, ConflictWarn}},
		{"--hairpin-mode", r.HairpinMode, []string{HairpinVeth, HairpinNone}},
		{"--drift", r.Drift, []string{DriftReport, DriftRepair, DriftRecreate}},
		{"--log-format", r.LogFormat, []string{LogText, LogJSON}},
	} {
		if !slices.Contains(c.allowed, c.value) {
			last := len(c.allowed) - 1
			return &UsageError{c.flag, c.value, "want " + strings.Join(c.allowed[:last], ", ") + " or " + c.allowed[last]}
		}
	}
	return nil
}

// checkBuiltin resolves --builtin-plugins.
func (r *raw) checkBuiltin() error {
	known := builtin.Types()
	switch r.builtin {
	case BuiltinAuto:
		r.BuiltinPlugins = known
		return nil
	case BuiltinOff:
		return nil
	}
	r.BuiltinPlugins = names(r.builtin)
	for _, typ := range r.BuiltinPlugins {
		if !slices.Contains(known, typ) {
			return &UsageError{"--builtin-plugins", r.builtin, fmt.Sprintf("%q is not built in; want auto, off, or some of %s", typ, strings.Join(known, ","))}
		}
	}
	if len(r.BuiltinPlugins) == 0 {
		return &UsageError{"--builtin-plugins", r.builtin, "want auto, off, or some of " + strings.Join(known, ",")}
	}
	return nil
}

func (r *raw) checkMetrics() error {
	if r.MetricsBindAddress == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(r.MetricsBindAddress)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || strings.ContainsFunc(host, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) || c == '/' }) {
		return &UsageError{"--metrics-bind-address", r.MetricsBindAddress, "want host:port such as 127.0.0.1:9300 or [::1]:9300, the port 0 to 65535"}
	}
	return nil
}
