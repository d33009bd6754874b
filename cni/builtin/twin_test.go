package builtin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/crinet-project/crinet/cni/builtin"
	"github.com/crinet-project/crinet/cni/wire"
	"github.com/crinet-project/crinet/internal/netnstest"
)

// netns is a network namespace of a test's own.
type netns struct{ file *os.File }

// path is where other processes find the namespace too.
func (ns netns) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.file.Fd()))
}

// needReference skips the test without root or the reference plugins; where everything
// must run, it fails. It returns the plugins' folder.
func needReference(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../../.tools/bin/cni")
	if err != nil {
		t.Fatal(err)
	}
	missing := ""
	for _, name := range []string{"bridge", "ptp", "host-local", "flannel"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			missing = "the reference plugin " + name + ": run make tools"
		}
	}
	if os.Geteuid() != 0 {
		missing = "root, for network namespaces"
	}
	switch {
	case missing == "":
	case os.Getenv("CRINET_TEST_REQUIRE_ALL") == "1":
		t.Fatalf("the test needs %s", missing)
	default:
		t.Skipf("the test needs %s", missing)
	}
	return dir
}

// newNetNS makes an empty namespace with lo up. It ends with the test.
func newNetNS(t testing.TB) netns {
	t.Helper()
	ns := netns{netnstest.New(t)}
	if err := ns.do(func() error {
		return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}) // lo
	}); err != nil {
		t.Fatal(err)
	}
	return ns
}

// do runs f on a thread inside the namespace.
func (ns netns) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread is given up rather than brought back
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (ns netns) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := ns.try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (ns netns) try(name string, args ...string) (string, error) {
	var out []byte
	err := ns.do(func() (err error) {
		out, err = exec.Command(name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// world is a node and one sandbox on it, in namespaces of their own.
type world struct {
	t         testing.TB
	host, pod netns
	data      string // host-local's files
	bin       string // of the reference plugins
	plugins   *builtin.Plugins
}

func newWorld(t testing.TB, bin string) *world {
	t.Helper()
	return &world{
		t: t, host: newNetNS(t), pod: newNetNS(t), data: t.TempDir(), bin: bin,
		plugins: builtin.New(slog.New(slog.NewTextHandler(t.Output(), nil))),
	}
}

// invocation is one call of a plugin in a world.
type invocation struct {
	verb    string
	id      string
	netns   string
	args    string
	conf    map[string]any
	prev    json.RawMessage
	builtin bool
}

// stdin returns the configuration that the plugin gets.
func (w *world) stdin(i invocation) []byte {
	conf := make(map[string]any, len(i.conf)+1)
	for key, value := range i.conf {
		conf[key] = value
	}
	if i.prev != nil && conf["cniVersion"] != "0.3.1" && conf["cniVersion"] != "0.3.0" {
		conf["prevResult"] = i.prev
	}
	text, err := json.Marshal(conf)
	if err != nil {
		w.t.Fatal(err)
	}
	return bytes.ReplaceAll(text, []byte("DATADIR"), []byte(w.data))
}

// call runs a plugin by its binary or built in, and returns what it prints.
func (w *world) call(i invocation) (json.RawMessage, error) {
	w.t.Helper()
	var out []byte
	err := w.host.do(func() (err error) {
		if i.builtin {
			out, err = w.callBuiltin(i)
		} else {
			out, err = w.exec(i)
		}
		return err
	})
	return out, err
}

func (w *world) callBuiltin(i invocation) ([]byte, error) {
	stdin := w.stdin(i)
	call := &builtin.Call{
		Type: i.conf["type"].(string), Command: i.verb, ContainerID: i.id, NetNS: i.netns, IfName: "eth0", Args: i.args, Config: stdin,
	}
	bare := i
	bare.conf, bare.prev = make(map[string]any), nil
	for key, value := range i.conf {
		if key != "runtimeConfig" {
			bare.conf[key] = value
		}
	}
	_, delegate, err := builtin.Known(call.Type, w.stdin(bare))
	if err != nil {
		w.t.Errorf("the test's configuration is not built in: %v\n%s", err, w.stdin(bare))
	}
	if delegate != nil {
		conf := make(map[string]json.RawMessage)
		given := make(map[string]json.RawMessage)
		if err := errors.Join(json.Unmarshal(delegate, &conf), json.Unmarshal(stdin, &given)); err != nil {
			w.t.Error(err)
		}
		for _, key := range []string{"runtimeConfig", "prevResult"} {
			if value, ok := given[key]; ok {
				conf[key] = value
			}
		}
		if call.Delegate, err = json.Marshal(conf); err != nil {
			w.t.Error(err)
		}
	}
	return w.plugins.Execute(w.t.Context(), call)
}

func (w *world) exec(i invocation) ([]byte, error) {
	cmd := exec.Command(filepath.Join(w.bin, i.conf["type"].(string)))
	cmd.Env = []string{
		"CNI_COMMAND=" + i.verb, "CNI_CONTAINERID=" + i.id, "CNI_NETNS=" + i.netns, "CNI_IFNAME=eth0", "CNI_ARGS=" + i.args,
		"CNI_PATH=" + w.bin, "PATH=" + os.Getenv("PATH"), "GOMAXPROCS=2",
	}
	cmd.Stdin = bytes.NewReader(w.stdin(i))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	var said wire.Error
	if json.Unmarshal(out, &said) != nil {
		w.t.Errorf("%s %s printed no error: %v: %s%s", cmd.Path, i.verb, err, out, &stderr)
	}
	return nil, &said
}

// code returns the CNI code of an error, 0 for none.
func code(t testing.TB, err error) uint {
	t.Helper()
	var said *wire.Error
	if err != nil && !errors.As(err, &said) {
		t.Errorf("an error without a code: %v", err)
	}
	if said == nil {
		return 0
	}
	return said.Code
}

// reap removes what DEL has left to be removed.
func (w *world) reap() {
	w.t.Helper()
	if err := w.host.do(builtin.Reap); err != nil {
		w.t.Error(err)
	}
}

// lock takes the lock of a file until it is closed.
func lock(t testing.TB, f *os.File) {
	t.Helper()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}
