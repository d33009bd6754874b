package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/runtime/admin"
)

var update = flag.Bool("update", false, "write the golden files")

// TestMain fixes the time zone that tables are written in.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// source is what a crinetd tells.
type source struct {
	status  admin.Status
	plugins admin.Plugins
	pods    []admin.Pod
	err     error
	forgot  admin.Forget
	recorded
}

func (s *source) Status() admin.Status       { return s.status }
func (s *source) Plugins() admin.Plugins     { return s.plugins }
func (s *source) Pods() ([]admin.Pod, error) { return s.pods, s.err }

func (s *source) Forget(_ context.Context, what admin.Forget) ([]admin.Pod, error) {
	s.forgot = what
	return s.pods[1:], s.err
}

func (s *source) Lend(context.Context, admin.Lend) (admin.Loan, error) {
	return nil, errors.New("the network is not lent")
}

func (s *source) Try(context.Context) (admin.Trial, error) {
	return admin.Trial{Network: "mynet", Addresses: []string{"10.10.0.9/16"}, Add: .1, Del: .2}, s.err
}

// A trial's outcome comes through admin.sock, and so does its failure.
func TestTrial(t *testing.T) {
	s := full()
	client := admin.NewClient(filepath.Join(serve(t, s), "admin.sock"))
	want, _ := s.Try(t.Context())
	if trial, err := client.Try(t.Context()); err != nil || !cmp.Equal(trial, want) {
		t.Errorf("the trial shows %+v, %v", trial, err)
	}
	s.err = errors.New("network mynet: no subnet.env")
	if _, err := client.Try(t.Context()); err == nil || !strings.Contains(err.Error(), "no subnet.env") {
		t.Errorf("a trial that fails = %v", err)
	}
}

// serve serves a source as crinetd does, and returns its --run-dir.
func serve(t *testing.T, s *source) (runDir string) {
	t.Helper()
	runDir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(runDir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- admin.Serve(ctx, l, admin.Handler(s, http.NotFoundHandler(), slog.New(slog.DiscardHandler)))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(runDir); err != nil {
			t.Error(err)
		}
	})
	return runDir
}

var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func full() *source {
	return &source{
		status: admin.Status{
			Version: "v1.2.3", Plugin: "cni", Ready: true, Network: "mynet", NetworkFile: "/etc/cni/net.d/10-mynet.conf",
			Selected: "the first usable network in /etc/cni/net.d", NetworkStatus: "good",
			NetworkPlugins: []admin.NetworkPlugin{{Type: "bridge", Builtin: true}, {Type: "portmap", Why: "crinetd has no such plugin"}},
			DHCPDaemons: []admin.DHCPDaemon{
				{Socket: "/run/cni/dhcp.sock", PID: 42, Own: true, Starts: 2}, {Socket: "/run/a", PID: 1}, {Socket: "/run/b", Reason: "cannot be started: no such file"},
			},
			Drift:  &admin.Drift{Mode: "recreate", Pods: []string{"default/web", "default/\x1b[2J"}, Remaking: 1},
			Notice: "max_conf_num of the runtime's CNI settings is 2",
			Runtime: &admin.Runtime{Name: "containerd", Version: "v2.4.2", ConfDir: "/etc/crinet/net.d", BinDirs: []string{"/opt/cni/bin"},
				Loaded: []string{"cni-loopback", "crinet"}, Problem: "it has not answered for 31s"},
			HostPorts: &admin.HostPorts{Pods: 2, Mappings: 5, Listeners: "udp: no udp_diag", Flows: "no nf_conntrack_netlink"},
			Addresses: []admin.AddressRange{
				{Network: "mynet", Range: "10.10.0.0/24", Selected: true, Size: 256, Reserved: 3, Used: 130, Free: 122, Leaked: 1,
					Leaks: []admin.AddressLeak{{Address: "10.10.0.9", Container: "a\x1b[31m", File: "/var/lib/cni/networks/mynet/10.10.0.9"}}},
				{Network: "mynet", Range: "fd00:10::/64", Selected: true, Size: 1 << 53, Used: 130, Free: 1<<53 - 130},
				{Network: "old", Range: "10.11.0.10-10.11.0.12", Size: 256, Reserved: 253, Used: 3, Problem: "permission denied"},
			},
			PodCIDRs: []string{"10.0.0.0/24", "fd00::/64"}, UndoPending: 1, AddFailures: 4,
			Networks: []admin.Network{
				{Name: "mynet", File: "/etc/cni/net.d/10-mynet.conf", CNIVersion: "0.3.0", Plugins: []string{"bridge"}},
				{Name: "other", File: "/etc/cni/net.d/20-other.conflist", CNIVersion: "1.1.0", Plugins: []string{"ptp", "portmap"}, Stale: "20-other.conflist: is empty"},
			},
			Problems: []admin.Problem{
				{File: "/etc/cni/net.d/20-other.conflist", Kind: "stale", Reason: "is empty; its last good version is used"},
				{File: "/etc/cni/net.d/30.conf", Line: 3, Col: 15, Kind: "broken", Reason: "is broken: invalid character ','"},
			},
			OtherNetwork: &admin.OtherNetwork{Network: "mynet", Count: 12, Pods: []string{"default/lost (podman)", "a\x1b[31m/b (podman)"}},
			Reloads:      []admin.Reload{{Generation: 2, Time: start, Why: "network mynet changed"}, {Generation: 1, Time: start.Add(-time.Hour), Why: "start"}},
			Watch:        &admin.Watch{Scans: 12, Probes: 3, LastScan: start, Error: "inotify cannot be used"},
		},
		plugins: admin.Plugins{
			Dirs: []admin.BinDir{{Path: "/opt/cni/bin"}, {Path: "/usr/lib/cni", Reason: "does not exist"}},
			Plugins: []admin.Plugin{
				{Name: "bridge", Path: "/opt/cni/bin/bridge", Versions: []string{"1.0.0", "1.1.0"}, Shadowed: []string{"/a/bridge", "/b/bridge"}},
				{Name: "junk", Path: "/opt/cni/bin/junk", Reason: "is no CNI plugin"},
			},
		},
		pods: []admin.Pod{
			{Namespace: "default", Name: "web", UID: "u1", SandboxID: "0123456789abcdef", State: "attached", Network: "mynet", NetNS: "/run/netns/a", OtherNetwork: true,
				Addresses: []string{"10.10.0.2/16"}, HostPorts: []string{"8080->80/tcp"}, HostPortsLimited: "macvlan: not from the node itself", Adopted: true,
				Drift: "interface: want eth0, have none of that name in the sandbox", DriftSince: new(start.Add(30 * time.Second)),
				Steps: []admin.Step{{Step: "create", Start: start, Duration: .01}, {Step: "netns", Duration: .0002}, {Step: "plugin", Duration: .1}, {Step: "start", Duration: -1}}},
			{Namespace: "kube-system", Name: "gone", UID: "u2", SandboxID: "ff", State: "detaching", Network: "mynet", Addresses: []string{}, HostPorts: []string{},
				Tries: 3, LastError: "plugin bridge: cannot"},
		},
	}
}

func TestForget(t *testing.T) {
	s := full()
	dir := serve(t, s)
	var out strings.Builder
	if err := run(t.Context(), []string{"--run-dir", dir, "forget", "ff", "--reason=its plugin is gone"}, &out); err != nil {
		t.Fatal(err)
	}
	if s.forgot != (admin.Forget{Sandbox: "ff", Reason: "its plugin is gone"}) || !strings.Contains(out.String(), "sandbox ff of pod kube-system/gone") {
		t.Errorf("crinetd was told %+v; printed %s", s.forgot, out.String())
	}
	var usage usageError
	for _, args := range [][]string{{"forget", "--reason=x"}, {"forget", "ff"}, {"forget", "a", "b", "--reason=x"}} {
		if err := run(t.Context(), append(args, "--run-dir", dir), &out); !errors.As(err, &usage) {
			t.Errorf("%v: %v, want a usage error", args, err)
		}
	}
	s.err = errors.New("sandbox ff of pod kube-system/gone is attached: remove the pod")
	if err := run(t.Context(), []string{"--run-dir", dir, "forget", "ff", "--reason=x"}, &out); err == nil || !strings.Contains(err.Error(), "remove the pod") {
		t.Errorf("forget = %v, want crinetd's refusal", err)
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	s := full()
	dir := serve(t, s)
	for _, command := range []string{"status", "probe"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{"--run-dir", dir, command}, &out); err != nil {
			t.Fatal(err)
		}
		golden(t, command+".txt", out.String())
	}
	var out bytes.Buffer
	if err := printPods(&out, s.pods, start.Add(90*time.Second)); err != nil {
		t.Fatal(err)
	}
	golden(t, "pods.txt", out.String())

	notReady := &source{status: admin.Status{Version: "v1", Plugin: "cni", Reason: "no usable CNI network in /etc/cni/net.d",
		Waiting: "plugin cilium-cni in /opt/cni/bin", WaitingSince: &start}}
	dir = serve(t, notReady)
	for _, command := range []string{"status", "probe", "pods"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{"--run-dir", dir, command}, &out); err != nil {
			t.Fatal(err)
		}
		golden(t, command+"-empty.txt", out.String())
	}
}

// What is told as JSON is what crinetd tells, whole.
func TestJSON(t *testing.T) {
	t.Parallel()
	s := full()
	dir := serve(t, s)
	check := func(command string, want, got any) {
		t.Helper()
		var out bytes.Buffer
		if err := run(t.Context(), []string{"-o", "json", "--run-dir", dir, command}, &out); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out.Bytes(), got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", command, diff)
		}
	}
	check("status", &s.status, new(admin.Status))
	check("probe", &s.plugins, new(admin.Plugins))
	check("pods", &s.pods, new([]admin.Pod))
}

func TestValidate(t *testing.T) {
	t.Parallel()
	const conf = "testdata/conf/"
	good, ranges, bad := conf+"good.conf", conf+"ranges.conflist", conf+"bad.conflist"
	for _, tt := range []struct {
		golden string
		args   []string
		err    string
	}{
		{"validate-good.txt", []string{"validate", good, ranges}, ""},
		{"validate-bad.txt", []string{"validate", bad, good, conf + "none.conf"}, "2 of 3 files cannot be used"},
		{"validate-bad.json", []string{"validate", "-o", "json", bad, ranges}, "1 of 2 files cannot be used"},
	} {
		var out bytes.Buffer
		// There is no daemon.
		err := run(t.Context(), append([]string{"--run-dir", "/no/such/dir"}, tt.args...), &out)
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != tt.err) {
			t.Errorf("%q: %v, want %q", tt.args, err, tt.err)
		}
		var usage usageError
		if errors.As(err, &usage) {
			t.Errorf("%q: %v is no error of usage, and exits with 1", tt.args, err)
		}
		golden(t, tt.golden, out.String())
	}
}

// With bin dirs validate says what crinetd would: plugins that are missing, and
// warnings. A network that leads back to crinet is none in any case.
func TestValidateWithPlugins(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plugin := "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'\n"
	if err := os.WriteFile(filepath.Join(dir, "azure-vnet"), []byte(plugin), 0o700); err != nil {
		t.Fatal(err)
	}
	const conf = "testdata/conf/"
	for _, tt := range []struct {
		args   []string
		want   string
		usable bool
	}{
		{[]string{conf + "azure.conflist"}, "azure-vnet", true},
		{[]string{conf + "azure.conflist", "--cni-bin-dir", dir}, "IPAM plugin azure-cns is no executable in " + dir, true},
		{[]string{conf + "ranges.conflist", "--cni-bin-dir", dir + ",/nonexistent"}, "plugin bridge is not in " + dir + ", /nonexistent", false},
		{[]string{conf + "loop.conflist"}, "leads back to crinet", false},
	} {
		var out strings.Builder
		err := run(t.Context(), append([]string{"validate"}, tt.args...), &out)
		if (err == nil) != tt.usable || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%q: %v, want usable: %t, and %q in\n%s", tt.args, err, tt.usable, tt.want, out.String())
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	broken := serve(t, &source{err: errors.New("the journal is gone")})
	for _, tt := range []struct {
		args  string
		want  string
		usage bool
	}{
		{"", "which command", true},
		{"fly", `no command "fly"`, true},
		{"status now", "takes no arguments", true},
		{"probe bridge", "takes no arguments", true},
		{"validate", "which FILE", true},
		{"-o yaml status", "want table or json", true},
		{"--no-such-flag", "no-such-flag", true},
		{"--run-dir /no/such/dir status", "/no/such/dir/admin.sock", false},
		{"--run-dir /no/such/dir probe", "crinetd does not answer", false},
		{"--run-dir " + broken + " pods", "the journal is gone", false},
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(tt.args), &out)
		var usage usageError
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.As(err, &usage) != tt.usage || out.Len() != 0 {
			t.Errorf("crinetctl %s: error %v, printed %q; want %q, an error of usage: %t", tt.args, err, out.String(), tt.want, tt.usage)
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, &out); err != nil {
		t.Error(err)
	}
	golden(t, "help.txt", out.String())
}
