package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/crinet-project/crinet/integration/node"
	"github.com/crinet-project/crinet/integration/testplugin/script"
	"github.com/crinet-project/crinet/runtime/recorder"
	"github.com/crinet-project/crinet/runtime/why"
)

// whyAnswers is how long crinetctl why may take. A machine that is busy gets several
// attempts.
const whyAnswers = 2 * time.Second

// exitCode is that of a command that was run.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// why waits until crinetctl why ends with the code, says these words on its first
// screen, and does so in time. It returns what it printed.
func (n *testNode) why(pod string, code int, words ...string) (out string) {
	n.t.Helper()
	n.awaitOK(cleanTimeout, func() (err error) {
		began := time.Now()
		out, err = n.Crinetctl(n.ctx, "why", pod)
		took := time.Since(began)
		if got := exitCode(err); got != code {
			return fmt.Errorf("crinetctl why %s ends with %d, want %d: %w\n%s", pod, got, code, err, out)
		}
		lines := strings.Split(out, "\n")
		screen := strings.Join(strings.Fields(strings.Join(lines[:min(len(lines), 24)], " ")), " ")
		for _, word := range words {
			if !strings.Contains(screen, word) {
				return fmt.Errorf("the first screen of crinetctl why %s does not say %q:\n%s", pod, word, out)
			}
		}
		for _, line := range lines {
			if len([]rune(line)) > 100 {
				return fmt.Errorf("a line of crinetctl why %s is too long: %s", pod, line)
			}
		}
		if took > whyAnswers {
			return fmt.Errorf("crinetctl why %s took %v", pod, took)
		}
		return nil
	})
	n.t.Logf("crinetctl why %s\n%s", pod, out)
	return out
}

// story is what crinetctl why -o json tells.
func (n *testNode) story(pod string) (s why.Story) {
	n.t.Helper()
	out, err := n.Crinetctl(n.ctx, "why", pod, "-o", "json")
	if len(out) == 0 {
		n.ok(err)
	}
	n.ok(json.Unmarshal([]byte(out), &s))
	return s
}

// A pod that came up: who asked, which network and why, steps, plugins, addresses, and
// that its parts stand. Once it is removed, that is told.
func TestWhyGoodPod(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod, err := client.RunPod(n.ctx, n.portPod("good"))
	n.ok(err)
	address := n.address(pod)
	n.why("good", 0, "Pod default/good: its network stands", address, "tcp *:8080", "Network recorded ("+node.ConfDir+"/"+recordedFile+")",
		"the first usable network in", "asked by kubelet or crictl", "create", "netns", "plugin", "bridge ADD", "built in", "testplugin ADD", "executed",
		"start", "All parts stand now", "table", "sysctl", "What to do Nothing.")
	s := n.story("default/good")
	if len(s.Sandboxes) != 1 || s.Sandboxes[0].ID != pod.ID || len(s.Sandboxes[0].Steps) != 4 || len(s.Sandboxes[0].Findings) < 8 {
		t.Errorf("the story is %+v", s)
	}
	for _, name := range []string{pod.ID[:6], pod.Config.GetMetadata().GetUid()} {
		n.why(name, 0, "Pod default/good")
	}
	n.ok(pod.StopAndRemove(n.ctx))
	n.why("good", 0, "its network was removed", "DEL")
	n.why("nobody", 2)
	direct := n.client(node.ContainerdSocket)
	other := n.runPod(direct, "direct")
	n.why("direct", 0, "its network stands", "asked by the runtime")
	n.ok(other.StopAndRemove(n.ctx))
	n.clean()
}

// Pods that fail, each in another way: the fault and what to do are on the first
// screen.
func TestWhyFailedPods(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t, "--cni-timeout=15s")
	fails := func(name string, words ...string) {
		t.Helper()
		if _, err := client.RunPod(n.ctx, n.PodConfig(name)); err == nil {
			t.Errorf("pod %s came up", name)
		}
		n.why(name, 1, words...)
		n.removeAll(client)
	}
	n.setRules(script.Rule{Verb: "ADD", Pod: "words", Do: script.Fail, Code: 142, Text: "the tide is out \x1b[2J", Stderr: "look at the\nmoon"})
	fails("words", "its network FAILED", `"the tide is out \x1b[2J"`, "(code 142)", `on standard error: "look at the moon"`, "testplugin ADD", "FAILED", "What to do", "plugin testplugin")

	n.setRules(script.Rule{Verb: "ADD", Pod: "hung", Do: script.Hang, Text: "asking the moon"})
	hung := n.startPod(n.ctx, client, "hung")
	n.why("hung", 1, "UNDER WAY", "testplugin has been running ADD", "testplugin ADD", "RUNS", "Plugin testplugin hangs")
	if err := <-hung; err == nil {
		t.Error("the hung pod came up")
	}
	n.why("hung", 1, "FAILED", "did not finish in time", "testplugin ADD", "What to do", "Plugin testplugin hangs", "--cni-timeout")
	n.setRules()
	n.removeAll(client)

	first, err := client.RunPod(n.ctx, n.portPod("first"))
	n.ok(err)
	if _, err := client.RunPod(n.ctx, n.portPod("second")); err == nil {
		t.Error("a pod with a hostPort that is taken came up")
	}
	n.why("second", 1, "REFUSED", "8080 is held by pod default/first", "What to do", "Free hostPort tcp *:8080, which pod default/first")
	n.ok(first.StopAndRemove(n.ctx))

	n.sh("mv %[1]s/testplugin %[1]s/testplugin.away", node.BinDir)
	n.awaitSelection("")
	if _, err := client.RunPod(n.ctx, n.PodConfig("unplugged")); err == nil {
		t.Error("a pod came up without its plugin")
	}
	n.why("unplugged", 1, "REFUSED", "testplugin", "What to do", "Install the plugin testplugin")
	n.sh("mv %[1]s/testplugin.away %[1]s/testplugin", node.BinDir)
	n.awaitSelection("recorded")

	out, err := n.Crinetctl(n.ctx, "why")
	n.ok(err)
	t.Logf("crinetctl why\n%s", out)
	for _, name := range []string{"words", "hung", "second", "unplugged"} {
		if !strings.Contains(out, "default/"+name) {
			t.Errorf("crinetctl why does not list %s:\n%s", name, out)
		}
	}
	n.clean()
}

// A plugin whose IPAM plugin is missing, a range that is used up: what libcni and the
// reference plugins say is understood.
func TestWhyExhaustedRangeAndMissingIPAM(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	small := strings.Replace(recordedBridge, `"subnet": "10.20.0.0/16"`, `"subnet": "10.20.0.0/29"`, 1)
	client := n.startRecorded()
	n.ok(n.WriteConf(recordedFile, strings.Replace(small, `"type": "host-local"`, `"type": "host-local", "rangeStart": "10.20.0.2", "rangeEnd": "10.20.0.2"`, 1)))
	n.awaitLive("the small range", "recorded", cleanTimeout)
	n.eventually("the small range selected", func() bool {
		pod, err := client.RunPod(n.ctx, n.PodConfig("holder"))
		n.ok(err)
		if _, err := client.RunPod(n.ctx, n.PodConfig("late")); err != nil {
			return true
		}
		n.ok(pod.StopAndRemove(n.ctx))
		n.removeAll(client)
		return false
	})
	n.why("late", 1, "FAILED", "no IP addresses available in range set", "What to do", "All addresses of network recorded are taken", recordedFile)
	n.removeAll(client)
	n.ok(n.StopCrinetd())
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--builtin-plugins=off"}, cniFlags...)...))
	n.ok(n.WriteConf(recordedFile, recordedBridge))
	n.awaitNetwork(client, true)
	n.eventually("a pod that fails for its IPAM plugin", func() bool {
		n.sh("mv %[1]s/host-local %[1]s/host-local.away", node.BinDir)
		_, err := client.RunPod(n.ctx, n.PodConfig("unplugged"))
		n.sh("mv %[1]s/host-local.away %[1]s/host-local", node.BinDir)
		n.removeAll(client)
		return err != nil
	})
	n.why("unplugged", 1, "FAILED", "host-local", "What to do", "Install the plugin host-local")
	n.clean()
}

// What somebody takes away from a pod by hand is named, with how to put it back.
func TestWhyPartsThatAreGone(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	for _, c := range []struct{ name, drift, part, mend string }{
		{"address", "nsenter --net=$NS ip address del $(nsenter --net=$NS ip -4 -o address show dev eth0 | awk '{print $4}') dev eth0", "address: want 10.20.", " address add 10.20."},
		{"route", "nsenter --net=$NS ip route del default", "route: want 0.0.0.0/0 (the default route)", " route add 0.0.0.0/0 via 10.20.0.1 dev eth0"},
		{"port", "ip link set $(ls /sys/class/net/recorded0/brif | head -1) nomaster", "as a port of recorded0", "master recorded0"},
		{"interface", "nsenter --net=$NS ip link del eth0", "interface: want eth0", "delete the pod"},
	} {
		pod := n.runPod(client, c.name)
		n.why(c.name, 0)
		netns := n.story(c.name).Sandboxes[0].NetNS
		n.sh("NS=%s; %s", netns, c.drift)
		n.why(c.name, 1, "does NOT STAND", c.part, "What to do", c.mend)
		n.ok(pod.StopAndRemove(n.ctx))
	}
	n.clean()
}

// A table that somebody else holds, so that crinetd cannot put it right, is named.
func TestWhyTableThatCannotHeal(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod, err := client.RunPod(n.ctx, n.portPod("ports"))
	n.ok(err)
	n.why("ports", 0)
	// The kernel lets nobody else change a table that a socket owns.
	n.sh(`mkfifo /run/owner
		nft -i </run/owner >/run/owner.log 2>&1 & echo $! >/run/owner.pids
		(exec 3>/run/owner; echo 'delete table inet crinet; add table inet crinet { flags owner; }' >&3; exec sleep 600) >/run/owner.log 2>&1 & echo $! >>/run/owner.pids`)
	n.why("ports", 1, "does NOT STAND", "table inet crinet", "What to do", "crinetctl status")
	n.sh("kill $(cat /run/owner.pids)")
	n.why("ports", 0)
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}

// After kill -9 all is there still, what was under way is cut off, and crinetctl tells
// by itself while no crinetd runs.
func TestWhyAfterKill(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	pod := n.runPod(client, "stays")
	n.ok(n.runPod(client, "gone").StopAndRemove(n.ctx))
	n.setRules(script.Rule{Verb: "ADD", Pod: "cut", Do: script.Hang})
	cut := n.startPod(n.ctx, client, "cut")
	n.ok(n.KillCrinetd())
	if err := <-cut; err == nil {
		t.Error("the pod came up although crinetd died")
	}
	n.why("stays", 0, "No crinetd answers", stateDir, "its network stands", "testplugin ADD")
	n.why("gone", 0, "its network was removed")
	n.why("cut", 1, "CUT OFF")
	n.setRules()
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(client, true)
	n.why("stays", 0, "its network stands", "testplugin ADD")
	n.why("gone", 0, "its network was removed")
	n.why("cut", 1, "CUT OFF", "What to do")
	n.ok(pod.StopAndRemove(n.ctx))
	n.removeAll(client)
	n.clean()
}

// A state dir without room costs the recorder its operations, not the pods theirs, and
// is told once.
func TestWhyFullDisk(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("mount -t tmpfs -o size=2m tmpfs " + stateDir)
	client := n.startRecorded()
	n.ok(n.runPod(client, "before").StopAndRemove(n.ctx))
	// The journal keeps room for some pods, and the recorder must not take it.
	n.sh("dd if=/dev/zero of=%[1]s/filler bs=1k count=$(($(df -k --output=avail %[1]s | tail -1)-100)) 2>/dev/null", stateDir)
	for i := range 5 {
		n.ok(n.runPod(client, fmt.Sprintf("during-%d", i)).StopAndRemove(n.ctx))
	}
	lost, err := n.Metric(n.ctx, "crinet_operations_lost_total")
	n.ok(err)
	log, err := n.Log("crinetd")
	n.ok(err)
	if told := strings.Count(log, "is not recorded for crinetctl why"); lost < 10 || told != 1 {
		t.Errorf("%v lines are lost, and that is told %d times; want 10 and more, and once", lost, told)
	}
	n.why("before", 0, "its network was removed")
	n.why("during-4", 2)
	n.sh("rm %s/filler", stateDir)
	n.ok(n.runPod(client, "after").StopAndRemove(n.ctx))
	n.why("after", 0, "its network was removed")
	n.clean()
}

// No secret of a configuration or of a plugin's words is in the files.
func TestWhyKeepsNoSecrets(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	client := n.startRecorded()
	const secret = "hunter2hunter2"
	n.ok(n.WriteConf("05-secret.conflist", strings.Replace(strings.Replace(recordedBridge, `"recorded"`, `"secret"`, 1), `"type": "testplugin"`,
		`"type": "testplugin", "etcd": {"Password": "`+secret+`", "client_key": "`+secret+`", "endpoints": "https://me:`+secret+`@db"}`, 1)))
	n.awaitSelection("secret")
	n.setRules(script.Rule{Verb: "ADD", Pod: "told", Do: script.Fail, Text: "login with token=" + secret + " was refused", Stderr: "Authorization: Bearer " + secret})
	if _, err := client.RunPod(n.ctx, n.PodConfig("told")); err == nil {
		t.Error("the pod came up")
	}
	n.ok(n.runPod(client, "good").StopAndRemove(n.ctx))
	out := n.why("told", 1, "FAILED", "was refused")
	for _, name := range []string{recorder.CurrentFile, recorder.OlderFile} {
		text, err := os.ReadFile(n.Path(stateDir + "/" + name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		if strings.Contains(string(text)+out, secret) {
			t.Errorf("%s has the secret", name)
		}
		if name == recorder.CurrentFile && !strings.Contains(string(text), recorder.Redacted) {
			t.Errorf("%s has nothing redacted:\n%s", name, text)
		}
	}
	n.removeAll(client)
	n.clean()
}

// otherNetwork is the name of a network and the plugins of its list.
type otherNetwork struct{ name, plugins string }

// otherNetworks are networks as the reference plugins make them.
var otherNetworks = []otherNetwork{
	{"dual", `{"type": "bridge", "bridge": "dual0", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.31.0.0/16"}], [{"subnet": "fd00:31::/64"}]]}}, {"type": "portmap", "capabilities": {"portMappings": true}}`},
	{"six", `{"type": "bridge", "bridge": "six0", "isDefaultGateway": true, "ipam": {"type": "host-local", "subnet": "fd00:32::/64"}}`},
	{"nogateway", `{"type": "bridge", "bridge": "nogw0", "ipam": {"type": "host-local", "subnet": "10.33.0.0/16", "routes": [{"dst": "192.0.2.0/24"}]}}`},
	{"pair", `{"type": "ptp", "ipMasq": true, "ipam": {"type": "host-local", "subnet": "10.34.0.0/16", "routes": [{"dst": "0.0.0.0/0"}]}}`},
	{"lan", `{"type": "macvlan", "master": "` + node.Uplink + `", "mode": "bridge", "ipam": {"type": "static",
		"addresses": [{"address": "198.51.100.77/24", "gateway": "198.51.100.1"}], "routes": [{"dst": "0.0.0.0/0"}]}}`},
	{"overlay", `{"type": "flannel", "delegate": {"bridge": "overlay0", "hairpinMode": true}}`},
	{"tuned", `{"type": "bridge", "bridge": "tuned0", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.36.0.0/16"}},
		{"type": "tuning", "mtu": 1400, "mac": "c2:b0:57:49:47:f1"}`},
}

// useNetwork makes one of otherNetworks the node's network.
func (n *testNode) useNetwork(client *node.Client, c otherNetwork) {
	n.t.Helper()
	version := "1.0.0"
	if c.name == "overlay" {
		version = "0.3.1" // flannel's binary knows no later one
		n.ok(n.WriteFile("/run/flannel/subnet.env", "FLANNEL_NETWORK=10.35.0.0/16\nFLANNEL_SUBNET=10.35.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"))
	}
	n.ok(n.WriteConf("05-net.conflist", fmt.Sprintf(`{"cniVersion": %q, "name": %q, "plugins": [%s]}`, version, c.name, c.plugins)))
	n.awaitLive(c.name, c.name, cleanTimeout)
	n.awaitNetwork(client, true)
}

// Of networks that are as their plugins left them nothing is missed, whether they run
// inside crinetd or are executed.
func TestWhyMissesNothingOfOtherNetworks(t *testing.T) {
	t.Parallel()
	for _, builtins := range []string{"all", "off"} {
		t.Run(builtins, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.ok(n.WriteConf("10-first.conflist", plain("first")))
			n.ok(n.StartContainerd(n.ctx))
			flags := cniFlags
			if builtins == "off" {
				flags = append([]string{"--builtin-plugins=off"}, cniFlags...)
			}
			n.ok(n.StartCrinetd(n.ctx, flags...))
			client := n.client(node.CrinetdSocket)
			for _, c := range otherNetworks {
				n.useNetwork(client, c)
				pod := n.runPod(client, "on-"+c.name)
				n.why("on-"+c.name, 0, "its network stands", "Network "+c.name)
				n.ok(pod.StopAndRemove(n.ctx))
			}
			n.clean()
		})
	}
}

// A pod from before crinetd came is told of, and what is missing of it is named.
func TestWhyAdoptedPod(t *testing.T) {
	t.Parallel()
	n := newNodeOf(t, node.Options{RuntimeConfDir: node.ConfDir})
	n.ok(n.WriteConf("10-mynet.conflist", otherBridge))
	n.ok(n.StartContainerd(n.ctx))
	direct := n.client(node.ContainerdSocket)
	n.awaitNetwork(direct, true)
	pod := n.runPod(direct, "before")
	n.ok(n.StartCrinetd(n.ctx, cniFlags...))
	n.awaitNetwork(n.client(node.CrinetdSocket), true)
	n.why("before", 0, "its network stands", "before crinetd came", "All parts stand now")
	n.sh("ip link set other0 down")
	n.why("before", 1, "does NOT STAND", "bridge: want other0, which is up", "ip link set other0 up")
	n.sh("ip link set other0 up")
	n.why("before", 0)
	n.ok(pod.StopAndRemove(n.ctx))
	n.clean()
}

// A caller who loses patience is told which plugin hung, whether it ends the call or
// its deadline does; and so is who asks afterwards.
func TestWhyCallerLosesPatience(t *testing.T) {
	t.Parallel()
	n, client := newRecordedNode(t)
	n.setRules(script.Rule{Verb: "ADD", Do: script.Hang})
	for _, name := range []string{"cancelled", "deadline"} {
		ctx, giveUp := context.WithCancel(n.ctx)
		if name == "deadline" {
			ctx, giveUp = context.WithTimeout(n.ctx, 4*time.Second)
		}
		failed := n.startPod(ctx, client, name)
		if name == "cancelled" {
			giveUp()
		}
		if err := <-failed; err == nil {
			t.Errorf("%s: the pod came up", name)
		}
		n.why(name, 1, "FAILED", "testplugin", "stopped after", "What to do", "Plugin testplugin hangs")
		giveUp()
		n.removeAll(client)
	}
	n.setRules()
	n.clean()
}

// A network whose DHCP server does not answer.
func TestWhyDeadDHCPServer(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("ip link add lan0 type bridge; ip link set lan0 up") // nobody is on it
	n.ok(n.WriteConf("10-lan.conflist", dhcpNetwork))
	n.ok(n.StartContainerd(n.ctx))
	n.ok(n.StartCrinetd(n.ctx, append([]string{"--cni-timeout=4s"}, cniFlags...)...))
	client := n.client(node.CrinetdSocket)
	n.awaitNetwork(client, true)
	if _, err := client.RunPod(n.ctx, n.PodConfig("unleased")); err == nil {
		t.Error("a pod came up without an address")
	}
	n.why("unleased", 1, "FAILED", "did not finish in time", "What to do", "No DHCP server has answered")
	n.removeAll(client)
}
