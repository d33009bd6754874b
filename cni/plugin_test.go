package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crinet-project/crinet/cni/pluginexec"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/config"
)

// bench is a bin dir with shell scripts for plugins. Each logs its type, verb
// and stdin, and then does what its name says.
type bench struct {
	dir     string
	plugin  *Plugin
	network *config.Network
}

// scripts are the plugins' bodies after the logging; $in is their stdin.
var scripts = map[string]string{
	"good":    `[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.2/24"}]}'`,
	"good2":   `[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.2/24"},{"address":"192.0.2.3/24"}]}'`,
	"old":     `[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"0.3.1","ips":[{"version":"4","address":"192.0.2.2/24"}]}'`,
	"refuses": `echo '{"cniVersion":"1.0.0","code":7,"msg":"no such thing","details":"key x"}'; exit 1`,
	"silent":  `exit 3`,
	"garbage": `echo 'hello'`,
	"mute":    `exit 0`,
	"hangs":   `sleep 300`,

	"complains": `echo the datastore is away >&2; sleep 300`,
}

func newBench(t *testing.T, conflist string) *bench {
	t.Helper()
	b := &bench{dir: t.TempDir()}
	for name, body := range scripts {
		script := fmt.Sprintf("#!/bin/sh\nin=$(cat)\n{ printf '%%s %%s ' %s \"$CNI_COMMAND\"; echo \"$in\"; } >>%s\nenv >%s\n%s\n",
			name, b.path("log"), b.path("env"), body)
		if err := os.WriteFile(b.path(name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.network = &config.Network{Name: "net", ConfList: []byte(conflist)}
	b.plugin = New(Config{
		BinDirs: []string{b.path("empty"), b.dir}, CacheDir: b.path("cache"), Timeout: 10 * time.Second,
		Selected: func() (*config.Network, error) { return b.network, nil },
		Runner:   pluginexec.New(pluginexec.Config{}),
		Log:      slog.New(slog.DiscardHandler),
	})
	return b
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// logged returns the calls so far, "type VERB", and the stdin of each.
func (b *bench) logged(t *testing.T) (calls []string, stdin []map[string]any) {
	t.Helper()
	data, err := os.ReadFile(b.path("log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), " ", 3)
		calls = append(calls, parts[0]+" "+parts[1])
		var in map[string]any
		if err := json.Unmarshal([]byte(parts[2]), &in); err != nil {
			t.Fatal(err)
		}
		stdin = append(stdin, in)
	}
	return calls, stdin
}

func conflist(version string, plugins ...string) string {
	for i, p := range plugins {
		plugins[i] = fmt.Sprintf(`{"type":%q,"capabilities":{"mac":true}}`, p)
	}
	return fmt.Sprintf(`{"cniVersion":%q,"name":"net","plugins":[%s]}`, version, strings.Join(plugins, ","))
}

// planned is an attachment to the bench's network.
func (b *bench) planned(t *testing.T) *Attachment {
	t.Helper()
	a, err := b.plugin.Plan(Attachment{
		ContainerID: "id", NetNS: "/proc/self/ns/net", IfName: "eth0",
		Args:           [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "p"}},
		CapabilityArgs: map[string]json.RawMessage{"mac": json.RawMessage(`"02:00:00:00:00:01"`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	a.CapabilityArgs = map[string]json.RawMessage{"mac": json.RawMessage(`"02:00:00:00:00:01"`)}
	return a
}

func TestPlanKeepsDeclaredCapabilities(t *testing.T) {
	b := newBench(t, conflist("1.0.0", "good"))
	b.network.Capabilities = []string{"mac"}
	given := map[string]json.RawMessage{"mac": json.RawMessage(`"m"`), "dns": json.RawMessage(`{}`)}
	a, err := b.plugin.Plan(Attachment{CapabilityArgs: given})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]json.RawMessage{"mac": json.RawMessage(`"m"`)}, a.CapabilityArgs); diff != "" {
		t.Errorf("capability args (-want +got):\n%s", diff)
	}
	if len(given) != 2 {
		t.Error("the caller's capability args were changed")
	}
}

func TestSetUpThenTearDown(t *testing.T) {
	b := newBench(t, conflist("1.0.0", "good", "good2"))
	a := b.planned(t)
	var err error
	if a.Result, err = b.plugin.SetUpPod(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(a.Result), "192.0.2.3/24") {
		t.Errorf("result %s, want the last plugin's", a.Result)
	}
	cache := filepath.Join(b.path("cache"), "results", "net-id-eth0")
	if _, err := os.Stat(cache); err != nil {
		t.Errorf("libcni's cache: %v", err)
	}
	// DEL must not need the cache.
	if err := os.WriteFile(cache, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.plugin.TearDownPod(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cache); !os.IsNotExist(err) {
		t.Errorf("libcni's cache after DEL: %v", err)
	}
	calls, stdin := b.logged(t)
	if diff := cmp.Diff([]string{"good ADD", "good2 ADD", "good2 DEL", "good DEL"}, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	for i, in := range stdin {
		prev, _ := json.Marshal(in["prevResult"])
		if has := strings.Contains(string(prev), "192.0.2.2"); has != (i > 0) {
			t.Errorf("call %d: prevResult %s", i, prev)
		}
		if diff := cmp.Diff(map[string]any{"mac": "02:00:00:00:00:01"}, in["runtimeConfig"]); diff != "" {
			t.Errorf("call %d: runtimeConfig (-want +got):\n%s", i, diff)
		}
		if in["name"] != "net" || in["cniVersion"] != "1.0.0" {
			t.Errorf("call %d: name %v, cniVersion %v", i, in["name"], in["cniVersion"])
		}
	}
}

func TestEnvironmentIsTheSpecs(t *testing.T) {
	t.Setenv("SECRET", "of the daemon")
	b := newBench(t, conflist("1.0.0", "good"))
	if _, err := b.plugin.SetUpPod(t.Context(), b.planned(t)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(b.path("env"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch {
		case name == "CNI_ARGS" && value != "IgnoreUnknown=1;K8S_POD_NAME=p":
			t.Errorf("CNI_ARGS=%s", value)
		case strings.HasPrefix(name, "CNI_"), name == "PATH", name == "GOMAXPROCS":
		case name == "PWD", name == "SHLVL", name == "OLDPWD", name == "_": // the shell's own
		default:
			t.Errorf("the plugin sees %s", line)
		}
	}
}

func TestTearDownCallsEveryPlugin(t *testing.T) {
	b := newBench(t, conflist("1.0.0", "good", "refuses", "gone", "good2"))
	a := b.planned(t)
	err := b.plugin.TearDownPod(t.Context(), a)
	for _, want := range []string{"no such thing", "plugin gone: no executable", "sandbox id", `network "net"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("TearDownPod = %v, want %q in it", err, want)
		}
	}
	calls, _ := b.logged(t)
	if diff := cmp.Diff([]string{"good2 DEL", "refuses DEL", "good DEL"}, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestOldVersionsGetNoPrevResult(t *testing.T) {
	b := newBench(t, conflist("0.3.1", "old"))
	a := b.planned(t)
	var err error
	if a.Result, err = b.plugin.SetUpPod(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.plugin.CheckPod(t.Context(), a), b.plugin.TearDownPod(t.Context(), a)); err != nil {
		t.Fatal(err)
	}
	calls, stdin := b.logged(t)
	if diff := cmp.Diff([]string{"old ADD", "old DEL"}, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if _, has := stdin[1]["prevResult"]; has {
		t.Error("DEL before CNI 0.4.0 got a prevResult")
	}
}

func TestBadPluginsAreNamed(t *testing.T) {
	for name, want := range map[string]string{
		"refuses": "plugin refuses: no such thing",
		"silent":  "exit status 3",
		"garbage": "garbage",
		"mute":    "mute",
		"gone":    "plugin gone: no executable of that name",
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, conflist("1.0.0", name))
			_, err := b.plugin.SetUpPod(t.Context(), b.planned(t))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("SetUpPod = %v, want %q in it", err, want)
			}
			var said *wire.Error
			if got := errors.As(err, &said) && said.Code == 7; got != (name == "refuses") {
				t.Errorf("SetUpPod = %v, the plugin's own code kept: %v", err, got)
			}
		})
	}
}

func TestTimeLimit(t *testing.T) {
	b := newBench(t, conflist("1.0.0", "hangs"))
	b.plugin.config.Timeout = 100 * time.Millisecond
	start := time.Now()
	_, err := b.plugin.SetUpPod(t.Context(), b.planned(t))
	if err == nil || !strings.Contains(err.Error(), "--cni-timeout is 100ms") {
		t.Errorf("SetUpPod = %v, want it to name the limit", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("SetUpPod took %v", took)
	}
}

// A plugin that hangs is ended before its caller gives up, so that the caller
// learns which plugin it was, what it said and how long it ran.
func TestCallersDeadline(t *testing.T) {
	t.Parallel()
	for verb, call := range map[string]func(*Plugin, context.Context, *Attachment) error{
		"ADD": func(p *Plugin, ctx context.Context, a *Attachment) error {
			_, err := p.SetUpPod(ctx, a)
			return err
		},
		"DEL":   (*Plugin).TearDownPod,
		"CHECK": (*Plugin).CheckPod,
	} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, conflist("1.0.0", "complains"))
			b.plugin.config.Timeout = time.Hour
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			err := call(b.plugin, ctx, b.planned(t))
			if ctx.Err() != nil {
				t.Error("the answer came when the caller had given up")
			}
			var failure *pluginexec.Error
			if !errors.As(err, &failure) || failure.Path != b.path("complains") || failure.Stderr != "the datastore is away" ||
				failure.Elapsed < 2*time.Second || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%s = %v (%+v), want the plugin, its stderr and its time", verb, err, failure)
			}
			for _, want := range []string{b.path("complains"), "the datastore is away", "stopped after 3.", "its caller waits for"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s = %v, want %q in it", verb, err, want)
				}
			}
		})
	}
}

// The caller's deadline and --cni-timeout: the earlier one ends the plugin.
func TestTimeLimitBeforeCallersDeadline(t *testing.T) {
	t.Parallel()
	b := newBench(t, conflist("1.0.0", "complains"))
	b.plugin.config.Timeout = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := b.plugin.SetUpPod(ctx, b.planned(t))
	if err == nil || !strings.Contains(err.Error(), "--cni-timeout is 200ms") || strings.Contains(err.Error(), "caller") {
		t.Errorf("SetUpPod = %v, want it to name --cni-timeout", err)
	}
}

func TestBeforeDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for wait, early := range map[time.Duration]time.Duration{
			time.Second: 50 * time.Millisecond, 20 * time.Second: time.Second, 4 * time.Minute: 2 * time.Second, 0: 0,
		} {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			ctx, stop := beforeDeadline(ctx)
			deadline, _ := ctx.Deadline()
			if got := time.Until(deadline); got != wait-early {
				t.Errorf("of %v there are %v left, want %v", wait, got, wait-early)
			}
			stop()
			cancel()
		}
		ctx, stop := beforeDeadline(t.Context())
		defer stop()
		if deadline, ok := ctx.Deadline(); ok {
			t.Errorf("a caller without a deadline has one at %v", deadline)
		}
	})
}

// A name that libcni refuses has crinet's error type as well.
func TestLibcniErrors(t *testing.T) {
	t.Parallel()
	b := newBench(t, conflist("1.0.0", "good"))
	a := b.planned(t)
	a.IfName = "a/b"
	_, err := b.plugin.SetUpPod(t.Context(), a)
	var said *wire.Error
	if !errors.As(err, &said) || said.Code != wire.CodeInvalidEnvironment {
		t.Errorf("SetUpPod = %v (%T), want code 4", err, err)
	}
}

func TestCheckCallsEachPlugin(t *testing.T) {
	b := newBench(t, conflist("1.0.0", "good", "good2"))
	if err := b.plugin.CheckPod(t.Context(), b.planned(t)); err != nil {
		t.Fatal(err)
	}
	calls, _ := b.logged(t)
	if diff := cmp.Diff([]string{"good CHECK", "good2 CHECK"}, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	off := newBench(t, `{"cniVersion":"1.0.0","name":"net","disableCheck":true,"plugins":[{"type":"refuses"}]}`)
	if err := off.plugin.CheckPod(t.Context(), off.planned(t)); err != nil {
		t.Errorf("CheckPod of a list with disableCheck = %v", err)
	}
}

func TestStatusVerb(t *testing.T) {
	for version, calls := range map[string]int{"1.0.0": 0, "1.1.0": 1} {
		b := newBench(t, conflist(version, "refuses"))
		err := b.plugin.NetworkStatus(t.Context(), b.network)
		var said *wire.Error
		if refused := errors.As(err, &said) && said.Code == 7; refused != (calls == 1) {
			t.Errorf("NetworkStatus in CNI %s = %v", version, err)
		}
		if got, _ := b.logged(t); len(got) != calls {
			t.Errorf("CNI %s: calls %v, want %d", version, got, calls)
		}
	}
}

func TestPluginTypeIsNoPath(t *testing.T) {
	e := &execAdapter{}
	for _, name := range []string{"", ".", "..", "../good", "/bin/sh", "a/b"} {
		if path, err := e.FindInPath(name, []string{"/bin"}); err == nil {
			t.Errorf("FindInPath(%q) = %s", name, path)
		}
	}
}
