package integration_test

import (
	"strings"
	"testing"

	"github.com/crinet-project/crinet/integration/node"
)

// ownConfDir is a conf dir that containerd has for itself.
const ownConfDir = "/etc/cni/runtime.d"

// crinetConf is crinet's configuration in a runtime's conf dir.
const crinetConf = "00-crinet.conflist"

// notReady waits until NetworkReady is false with all words in its message, and
// sees that a pod is refused at once with the same reason.
func (n *testNode) notReady(client *node.Client, words ...string) {
	n.t.Helper()
	message := ""
	n.eventually("NetworkReady says "+strings.Join(words, ", "), func() bool {
		condition, err := client.NetworkReady(n.ctx)
		if err != nil {
			return false // crinetd does not serve yet
		}
		message = condition.GetMessage()
		for _, word := range words {
			if condition.GetStatus() || !strings.Contains(message, word) {
				return false
			}
		}
		return true
	})
	n.t.Logf("NetworkReady: %s", message)
	n.refused(client, n.PodConfig("turned-away"), words...)
}

// worksAgain waits until the network is ready, and runs a pod.
func (n *testNode) worksAgain(client *node.Client, name string) {
	n.t.Helper()
	n.awaitNetwork(client, true)
	n.ok(n.runPod(client, name).StopAndRemove(n.ctx))
	n.noLeftovers()
}

// newSharedNode starts a node whose containerd has the conf dir that everybody
// has.
func newSharedNode(t *testing.T) *testNode {
	t.Helper()
	return newNodeOf(t, node.Options{RuntimeConfDir: node.ConfDir})
}

// startInstalled starts a node with the seed's bridge whose containerd has a
// conf dir of its own, and crinetd with flags.
func startInstalled(t *testing.T, options node.Options, flags ...string) (*testNode, *node.Client) {
	t.Helper()
	options.RuntimeConfDir = ownConfDir
	n := newNodeOf(t, options)
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append(flags, cniFlags...)...))
	return n, n.client(node.CrinetdSocket)
}

// Review rows A1 and A2: a flag that names another directory than the runtime's
// is told with both, and the runtime's own answer is enough.
func TestRuntimeReadsAnotherConfDir(t *testing.T) {
	t.Parallel()
	n, client := startInstalled(t, node.Options{}, "--runtime-cni-conf-dir="+node.ConfDir)
	n.notReady(client, ownConfDir, "--runtime-cni-conf-dir is "+node.ConfDir, "conf_dir", "config.toml")
	n.restart(client, cniFlags...)
	n.sh("test -e %s/%s", ownConfDir, crinetConf)
	if runtime := n.status().Runtime; runtime.ConfDir != ownConfDir || runtime.Problem != "" {
		t.Errorf("crinetctl status says of the runtime %+v, want its conf dir %s", runtime, ownConfDir)
	}
	n.worksAgain(client, "own")
}

// Review row A2: without a flag crinetd finds the runtime's conf dir, whatever
// containerd it is, and only a shared one is worth a note.
func TestRuntimeIsAsked(t *testing.T) {
	t.Parallel()
	for _, containerd := range node.Containerds() {
		for name, confDir := range map[string]string{"own": ownConfDir, "shared": node.ConfDir} {
			t.Run(string(containerd)+" "+name, func(t *testing.T) {
				t.Parallel()
				runtimeIsAsked(t, node.Options{Containerd: containerd, RuntimeConfDir: confDir})
			})
		}
	}
}

func runtimeIsAsked(t *testing.T, options node.Options) {
	n := newNodeOf(t, options)
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	s := n.status()
	t.Logf("%s %s, loaded: %q", s.Runtime.Name, s.Runtime.Version, s.Runtime.Loaded)
	if shared := options.RuntimeConfDir == node.ConfDir; strings.Contains(s.Notice, "shares "+node.ConfDir) != shared {
		t.Errorf("crinetctl status notes %q, want the shared conf dir there: %t", s.Notice, shared)
	}
	n.worksAgain(client, "asked")
}

// Review row A1: containerd has loaded a file that sorts before crinet's.
func TestConfListNotLoaded(t *testing.T) {
	t.Parallel()
	n, client := startInstalled(t, node.Options{})
	n.awaitNetwork(client, true)
	file := ownConfDir + "/00-aardvark.conflist"
	n.ok(n.WriteFile(file, otherBridge))
	n.notReady(client, ownConfDir+"/"+crinetConf, "other", "sort before")
	n.sh("rm %s", file)
	n.worksAgain(client, "first-again")
}

// Review row A1: without the plugin loopback containerd runs no pod.
func TestLoopbackMissing(t *testing.T) {
	t.Parallel()
	n, client := startInstalled(t, node.Options{})
	n.awaitNetwork(client, true)
	plugin := node.BinDir + "/loopback"
	n.sh("mv %[1]s %[1]s.away", plugin)
	n.notReady(client, "plugin loopback", node.BinDir, "use_internal_loopback")
	n.sh("mv %[1]s.away %[1]s", plugin)
	n.worksAgain(client, "looped")
}

// Review rows A1, A2 and A23: the conf dir is removed and made again.
// containerd 2 ends itself, and its supervisor starts it again; an older one has
// lost its watch of the directory, and the message says that it must be restarted.
func TestConfDirRemovedAndMadeAgain(t *testing.T) {
	t.Parallel()
	for _, containerd := range node.Containerds() {
		t.Run(string(containerd), func(t *testing.T) {
			t.Parallel()
			n, client := startInstalled(t, node.Options{Containerd: containerd, Supervise: true})
			n.awaitNetwork(client, true)
			stays := n.runPod(client, "stays")
			// crinetd may put its file back in the middle of it.
			n.sh("for i in 1 2 3 4 5; do rm -r %[1]s && exit 0; done; exit 1", ownConfDir)
			if containerd == node.Containerd24 {
				n.eventually("containerd ended and started again", func() bool {
					log, err := n.Log("containerd")
					n.ok(err)
					return strings.Count(log, "starting containerd") == 2
				})
				n.sh("test -e %s/%s", ownConfDir, crinetConf)
			} else {
				n.notReady(client, ownConfDir)
				n.eventually("crinet's file is there again", func() bool { return n.do("test", "-e", ownConfDir+"/"+crinetConf) == nil })
				n.ok(n.StopContainerd())
				n.ok(n.StartContainerd(n.ctx))
			}
			n.awaitNetwork(client, true)
			n.ok(stays.StopAndRemove(n.ctx))
			n.worksAgain(client, "after")
		})
	}
}
