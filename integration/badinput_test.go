package integration_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
)

// Every wrong value of a flag ends crinetd with code 2 and the flag's name.
func TestWrongFlags(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, arg := range []string{
		"--network-plugin=../mynet",
		"--cni-bin-dir=",
		"--cni-bin-dir=opt/cni/bin",
		"--cni-conf-dir=etc",
		"--cni-cache-dir=",
		"--network-plugin-mtu=-1",
		"--network-plugin-mtu=67",
		"--network-plugin-mtu=65536",
		"--network-plugin-mtu=many",
		"--pod-cidr=10.0.0.0",
		"--pod-cidr=10.0.0.0/8,10.1.0.0/16",
		"--container-runtime-endpoint=tcp://127.0.0.1:1",
		"--image-service-endpoint=http://containerd",
		"--run-dir=run",
		"--state-dir=",
		"--runtime-cni-conf-dir=net.d",
		"--runtime-cni-bin-dir=bin",
		"--hostport=iptables",
		"--hairpin-mode=promiscuous-bridge",
		"--hostport-conflict=ignore",
		"--cni-timeout=0s",
		"--cni-timeout=-1m",
		"--cni-timeout=soon",
		"--cni-gc-interval=-1s",
		"--cni-failed-adds-not-ready=-1",
		"--cni-max-chains=-1",
		"--shutdown-grace=-1s",
		"--metrics-bind-address=9100",
		"--v=loud",
		"--v=-1",
		"--log-format=xml",
		"--no-such-flag",
	} {
		flag, _, _ := strings.Cut(arg, "=")
		ctx, cancel := context.WithTimeout(n.ctx, 20*time.Second)
		_, err := n.Run(ctx, kit.Crinet("crinetd"), arg)
		cancel()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%s: ended with %v, want exit code 2", arg, err)
			continue
		}
		// The error begins with the command line, which names the flag in any case.
		_, said, _ := strings.Cut(err.Error(), "\n")
		if !strings.Contains(said, strings.TrimLeft(flag, "-")) {
			t.Errorf("%s: the flag is not named in %q", arg, said)
		}
	}
}

func TestUnwritableDirs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, flag := range []string{"--state-dir", "--run-dir"} {
		ctx, cancel := context.WithTimeout(n.ctx, 20*time.Second)
		// Nobody can make a folder there, not even root.
		_, err := n.Run(ctx, kit.Crinet("crinetd"), flag+"=/proc/crinet", "--network-plugin=cni")
		if err == nil || ctx.Err() != nil {
			t.Fatalf("%s=/proc/crinet: ended with %v, want an error at once", flag, err)
		}
		cancel()
		_, said, _ := strings.Cut(err.Error(), "\n")
		if !strings.Contains(said, "/proc/crinet") {
			t.Errorf("%s: the folder is not named in %q", flag, said)
		}
	}
}

func TestMissingBinDir(t *testing.T) {
	t.Parallel()
	n, client := newNodeWith(t, "10-mynet.conf", seedBridge, append([]string{
		"--cni-bin-dir=/run/no/such/dir", "--runtime-cni-bin-dir=" + node.BinDir}, cniFlags...)...)
	message := n.awaitNetwork(client, false)
	if !strings.Contains(message, "bridge") || !strings.Contains(message, "/run/no/such/dir") {
		t.Errorf("NetworkReady says %q, want it to name the plugin and the folder", message)
	}
	_, err := n.Run(n.ctx, "sh", "-c", "mkdir -p /run/no/such && ln -s "+node.BinDir+" /run/no/such/dir")
	n.ok(err)
	n.awaitNetwork(client, true)
	n.ok(n.runPod(client, "late").StopAndRemove(n.ctx))
	n.noLeftovers()
}

// Files that cannot be used are reported, and the other files are used.
func TestBadConfFiles(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	bad := map[string]string{
		"01-broken.conflist": `{"cniVersion": "1.0.0", "name": "broken", "plugins": [{"type": "bri`,
		"02-empty.conf":      "",
		"03-foreign.conf":    `{"cniVersion": "1.0.0", "name": "foreign", "type": "nosuchplugin"}`,
	}
	for name, content := range bad {
		n.ok(n.WriteConf(name, content))
	}
	n.ok(n.WriteConf("README.txt", "not a configuration at all"))
	n.ok(n.WriteConf("10-mynet.conf", seedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	pod := n.runPod(client, "fine")
	log, err := n.Log("crinetd")
	n.ok(err)
	report, err := n.Crinetctl(n.ctx, "status")
	n.ok(err)
	for name := range bad {
		if !strings.Contains(log, name) {
			t.Errorf("crinetd's log does not name %s", name)
		}
		if !strings.Contains(report, name) {
			t.Errorf("crinetctl status does not name %s:\n%s", name, report)
		}
	}
	if !strings.Contains(log, "nosuchplugin") {
		t.Error("crinetd's log does not name the plugin that is missing")
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.noLeftovers()
}

// When a plugin misbehaves, only the pod for which it was called fails. The error
// names the plugin.
func TestBadPlugin(t *testing.T) {
	t.Parallel()
	const timeout = 3 * time.Second
	n, client := newRecordedNode(t, "--cni-timeout="+timeout.String())
	good := n.runPod(client, "good")
	for _, rule := range []script.Rule{
		{Do: script.Garbage},
		{Do: script.Flood},
		{Do: script.Silent},
		{Do: script.Crash},
		{Do: script.Fail, Code: 111, Text: "the moon is not full"},
		{Do: script.Hang},
		{Do: script.Die},
	} {
		rule.Verb = "ADD"
		n.setRules(rule)
		began := time.Now()
		_, err := client.RunPod(n.ctx, n.PodConfig("bad-"+string(rule.Do)))
		if err == nil || !strings.Contains(err.Error(), "testplugin") || !strings.Contains(err.Error(), rule.Text) {
			t.Errorf("%s: RunPodSandbox answers %v, want an error that names the plugin", rule.Do, err)
		}
		if took := time.Since(began); took > 4*timeout {
			t.Errorf("%s: the answer took %v", rule.Do, took)
		}
		n.setRules()
		n.ok(n.runPod(client, "after-"+string(rule.Do)).StopAndRemove(n.ctx))
	}
	n.ok(good.StopAndRemove(n.ctx))
	n.noLeftovers()
}

func TestPluginThatIsNotExecutable(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	plugin, err := os.ReadFile(kit.Program("testplugin"))
	n.ok(err)
	n.ok(n.WriteFile(node.BinDir+"/testplugin", string(plugin)))
	n.ok(n.WriteConf("10-recorded.conflist", recordedBridge))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	client := n.client(node.CrinetdSocket)
	if message := n.awaitNetwork(client, false); !strings.Contains(message, "testplugin") {
		t.Errorf("NetworkReady says %q, want it to name the plugin", message)
	}
	if _, err := client.RunPod(n.ctx, n.PodConfig("refused")); err == nil || !strings.Contains(err.Error(), "testplugin") {
		t.Errorf("RunPodSandbox answers %v, want a refusal that names the plugin", err)
	}
	_, err = n.Run(n.ctx, "chmod", "+x", node.BinDir+"/testplugin")
	n.ok(err)
	n.awaitNetwork(client, true)
	n.ok(n.runPod(client, "executable").StopAndRemove(n.ctx))
	n.noLeftovers()
}
