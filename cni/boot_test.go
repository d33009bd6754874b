package cni_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/crinet-project/crinet/cni"
	"github.com/crinet-project/crinet/config"
	"github.com/crinet-project/crinet/probe"
)

const (
	// bootCount boots are tried, bootsAtOnce side by side.
	bootCount, bootsAtOnce = 100, 10
	// bootWithin is how long after its last part a network is ready.
	bootWithin = 3 * time.Second
	bootLimit  = time.Minute
)

// real is the network that the node had before it was rebooted: a chain with an IPAM
// plugin, whose agent answers STATUS.
const realConf = `{"cniVersion": "1.1.0", "name": "real", "plugins": [
	{"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}}, {"type": "agentcni"}]}`

// node is a node of directories: conf, bin and state, with an agent that is there or not.
type bootNode struct {
	t     *testing.T
	dir   string
	flag  string // --network-plugin
	decoy string // the file of another network, which is whole
	agent atomic.Bool
}

func (n *bootNode) path(parts ...string) string {
	return filepath.Join(append([]string{n.dir}, parts...)...)
}

// put writes a file, by rename or slowly in place, as those do who bring a network.
func (n *bootNode) put(path, text string, mode os.FileMode, slowly bool) {
	if !slowly {
		if err := os.WriteFile(path+".new", []byte(text), mode); err != nil {
			n.t.Error(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			n.t.Error(err)
		}
		return
	}
	for _, part := range []string{text[:len(text)/2], text} {
		if err := os.WriteFile(path, []byte(part), mode); err != nil {
			n.t.Error(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (n *bootNode) plugin(name string) {
	n.put(n.path("bin", name), "#!/bin/sh\necho '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.0.0\",\"1.1.0\"]}'\n", 0o755, false)
}

func (n *bootNode) putDecoy(slowly bool) {
	n.put(n.path("conf", n.decoy), `{"cniVersion": "1.1.0", "name": "decoy", "plugins": [{"type": "decoy"}]}`, 0o644, slowly)
}

// Run is the plugins: those of real need the agent.
func (n *bootNode) Run(_ context.Context, path string, stdin []byte, env []string) (stdout, stderr []byte, err error) {
	if !n.agent.Load() && filepath.Base(path) == "agentcni" {
		return []byte(`{"cniVersion": "1.1.0", "code": 50, "msg": "the agent is not there"}`), nil, fmt.Errorf("exit status 1")
	}
	for _, name := range env {
		if name == "CNI_COMMAND=ADD" {
			return []byte(`{"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/16"}]}`), nil, nil
		}
	}
	return nil, nil, nil
}

// crinetd is what of crinetd decides which network a pod gets.
type bootCrinetd struct {
	selection *config.Selection
	plugin    *cni.Plugin
	end       func()
}

func (n *bootNode) start(bootID string) (*bootCrinetd, error) {
	ctx, cancel := context.WithCancel(n.t.Context())
	c := new(bootCrinetd)
	log := slog.New(slog.DiscardHandler)
	watcher, err := config.NewWatcher(ctx, config.WatcherConfig{
		ConfDir: n.path("conf"), Prober: probe.New([]string{n.path("bin")}, probe.Config{}), LastGoodFile: n.path("state", "lastgood.json"), Log: log,
		OnChange: func(s *config.Snapshot) {
			c.selection.Changed(ctx, s)
			c.plugin.SelectionChanged()
		},
	})
	if err != nil {
		cancel()
		return nil, err
	}
	c.selection = config.NewSelection(config.SelectionConfig{
		NetworkPlugin: n.flag, Snapshot: watcher.Snapshot, File: n.path("state", "selected.json"), BootID: bootID, Wait: bootLimit,
		PodCIDRKnown: func() bool { return true }, Log: log,
	})
	c.selection.Changed(ctx, watcher.Snapshot())
	c.plugin = cni.New(cni.Config{
		BinDirs: []string{n.path("bin")}, CacheDir: n.path("state"), Timeout: bootLimit, Selected: c.selection.Selected,
		Runner: n, AwaitStatus: !c.selection.Settled(), Log: log,
	})
	var group sync.WaitGroup
	group.Go(func() {
		if err := watcher.Run(ctx); err != nil {
			n.t.Error(err)
		}
	})
	group.Go(func() { c.selection.Run(ctx, c.plugin.SelectionChanged) })
	group.Go(func() { c.plugin.RunStatus(ctx) })
	c.end = func() { cancel(); group.Wait() }
	return c, nil
}

// await waits until pods are admitted.
func (c *bootCrinetd) await() (took time.Duration, err error) {
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		err := c.plugin.Status()
		if took = time.Since(began); err == nil {
			return took, nil
		}
		if took > bootLimit {
			return took, fmt.Errorf("not ready after %v: %w", took, err)
		}
	}
}

// pod comes until it is admitted, and then must get its network, the real one.
func (c *bootCrinetd) pod(ctx context.Context, name string) error {
	for c.plugin.Status() != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("pod %s was never admitted", name)
		}
		time.Sleep(time.Millisecond)
	}
	a, err := c.plugin.Plan(cni.Attachment{ContainerID: name, NetNS: "/run/netns/" + name, IfName: "eth0"})
	if err != nil {
		return fmt.Errorf("pod %s was admitted: %w", name, err)
	}
	if a.Network != "real" {
		return fmt.Errorf("pod %s is on network %s", name, a.Network)
	}
	_, err = c.plugin.SetUpPod(ctx, a)
	return err
}

// bins are the binaries of the real network.
func (n *bootNode) bins() []string { return []string{"bridge", "host-local", "agentcni"} }

// before is the boot before: the node has its network, and a pod.
func (n *bootNode) before() error {
	for _, dir := range []string{"conf", "bin", "state"} {
		if err := os.Mkdir(n.path(dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range append(n.bins(), "decoy") {
		n.plugin(name)
	}
	n.put(n.path("conf", "20-real.conflist"), realConf, 0o644, false)
	n.agent.Store(true)
	c, err := n.start("before")
	if err != nil {
		return err
	}
	defer c.end()
	return c.pod(n.t.Context(), "before")
}

// parts are what the network needs, and another network.
func (n *bootNode) parts(random *rand.Rand) []func() {
	slowly := []bool{random.IntN(2) == 0, random.IntN(2) == 0}
	parts := []func(){
		func() { n.put(n.path("conf", "20-real.conflist"), realConf, 0o644, slowly[0]) },
		func() { n.putDecoy(slowly[1]) },
		func() { n.agent.Store(true) },
	}
	for _, name := range n.bins() {
		parts = append(parts, func() { n.plugin(name) })
	}
	return parts
}

// boot has a node reboot: the parts of its network come in any order while pods do.
// It returns how long after the last part the network was ready.
func (n *bootNode) boot(random *rand.Rand) (time.Duration, error) {
	if err := n.before(); err != nil {
		return 0, err
	}
	n.agent.Store(false)
	for _, file := range []string{"conf/20-real.conflist", "bin/bridge", "bin/host-local", "bin/agentcni"} {
		if random.IntN(4) > 0 { // some of it is there already
			if err := os.Remove(n.path(file)); err != nil {
				return 0, err
			}
		}
	}
	if random.IntN(2) == 0 {
		n.putDecoy(false)
	}
	after, err := n.start("after")
	if err != nil {
		return 0, err
	}
	defer after.end()
	ctx, cancel := context.WithTimeout(n.t.Context(), bootLimit)
	defer cancel()
	var pods sync.WaitGroup
	for i := range 3 {
		pods.Go(func() {
			if err := after.pod(ctx, fmt.Sprintf("pod-%d", i)); err != nil {
				n.t.Error(err)
			}
		})
	}
	parts := n.parts(random)
	for _, i := range random.Perm(len(parts)) {
		time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond)
		parts[i]()
	}
	took, err := after.await()
	pods.Wait()
	return took, err
}

// A hundred boots: the files, binaries and the agent of the network that the node had
// come in any order, beside another network that is whole. No pod is on the other one,
// none that was admitted fails, and the network is ready soon after its last part.
func TestHundredBoots(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	places := make(chan struct{}, bootsAtOnce)
	var group sync.WaitGroup
	var mu sync.Mutex // guards slowest
	var slowest time.Duration
	for i := range bootCount {
		places <- struct{}{}
		n := &bootNode{t: t, dir: t.TempDir(), flag: config.PluginCNI, decoy: "87-decoy.conflist"}
		if i%2 == 1 { // pinned by name: another one may even come first
			n.flag, n.decoy = "real", "10-decoy.conflist"
		}
		group.Go(func() {
			defer func() { <-places }()
			took, err := n.boot(rand.New(rand.NewPCG(seed, uint64(i))))
			if err != nil {
				t.Errorf("boot %d: %v", i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, took)
		})
	}
	group.Wait()
	t.Logf("the slowest was ready %v after its last part", slowest)
	if slowest > bootWithin {
		t.Errorf("ready %v after the last part, want %v", slowest, bootWithin)
	}
}
